"""What `classifleet top` shows of a fleet."""

import json
from datetime import UTC, datetime
from io import StringIO

import pytest
from rich.console import Console

from classifleet.ledger import QueueDepth, WorkerFigures, WorkerInfo
from classifleet.producer.cli._top_screen import CODES_SHOWN, ORDERS, Snapshot, as_json, failures, screen

AT = datetime(2026, 11, 22, 12, 34, 56, tzinfo=UTC)
NOTHING = {
    **dict.fromkeys(("queued_chunks", "leased_chunks", "parked_chunks"), 0),
    **dict.fromkeys(("queued_images", "leased_images", "parked_images", "done_images"), 0),
    **dict.fromkeys(("oldest_seconds", "accepted_rate", "done_rate"), 0.0),
}
BUSY = {
    **{"queued_chunks": 3000, "queued_images": 96_000, "leased_chunks": 32, "leased_images": 1024},
    **{"oldest_seconds": 42.0, "accepted_rate": 120.5, "done_rate": 130.25},
}


def depth(**changes):
    return QueueDepth(**{**NOTHING, **changes})


def worker(name, *, silent=0.0, pools=("default",), **figures):
    return WorkerInfo(f"{name}:7:abcdef01", pools, ("imagenet@1",), "0.1.0", silent, WorkerFigures(**figures))


def fleet(*workers, queues=None, dead_letters=0):
    return Snapshot(AT, "default", queues or {"classify.default.bulk": depth(**BUSY)}, dead_letters, workers)


def lines(snapshot, *, width=80, **options):
    """As a terminal without colours has it."""
    console = Console(file=StringIO(), width=width, highlight=False)
    console.print(screen(snapshot, width=width, **options))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


A = worker("gpu-a", images=12_345, images_per_second=1234.56, batch_images=27.31, batch_fill=0.853)
B = worker(
    "gpu-b", silent=31.0, pools=("default", "gpu"), images=9, images_per_second=0.5, batch_images=1.0, batch_fill=0.03,
    failed={"fetch_timeout": 1200, "undecodable": 34},
)  # fmt: skip
EXPORTER = worker("exporter", pools=())


def test_a_fleet_at_work():
    assert lines(fleet(A, B, EXPORTER, dead_letters=5)) == [
        "12:34:56 UTC  default  97,024 images at 130.2/s  2 workers  1 exporter",
        "",
        "queue                     queued  running    oldest    in/s   out/s   drained in",
        "default.bulk              96,000    1,024      42 s   120.5   130.2       12 min",
        "",
        "worker*                      pools        images/s  batch   fill   failed  heard",
        "gpu-a:7                      default         1,235   27.3    85%        0    now",
        "gpu-b:7                      default,gpu       0.5    1.0     3%    1,234   31 s",
        "",
        "failed  fetch_timeout 1,200  undecodable 34",
        "→ 5 dead letters: `classifleet dead-letters list` says why",
    ]


def test_a_fleet_at_zero():
    found = "\n".join(lines(fleet(EXPORTER, queues={"classify.default.bulk": depth(**{**BUSY, "done_rate": 0.0})})))
    assert "0 workers  1 exporter" in found
    assert "not draining" in found
    assert "no worker is running: `classifleet worker` starts one" in found


def test_before_the_first_submission_and_before_the_first_look():
    empty = Snapshot(AT, "default", {}, 0, ())
    assert "there are no queues: nothing was ever submitted" in lines(empty)
    assert lines(None) == ["looking…"]
    assert lines(None, trouble="no answer for 5 s: refused") == ["! no answer for 5 s: refused"]


def test_trouble_stands_above_what_was_seen_last():
    found = lines(fleet(A), trouble="no answer for 5 s: refused")
    assert found[1] == "! no answer for 5 s: refused"
    assert any("gpu-a:7" in line for line in found)


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("name", ["gpu-a", "gpu-b", "gpu-c"]),
        ("images/s", ["gpu-c", "gpu-a", "gpu-b"]),
        ("fill", ["gpu-b", "gpu-c", "gpu-a"]),
        ("failed", ["gpu-b", "gpu-a", "gpu-c"]),
    ],
)
def test_orders(order, names):
    c = worker("gpu-c", images_per_second=2000.0, batch_images=16.0, batch_fill=0.5)
    found = lines(fleet(A, B, c), order=order)
    assert [line.split(":")[0] for line in found if line.startswith("gpu-")] == names
    [heading] = [line for line in found if line.startswith("worker")]
    assert f"{'worker' if order == 'name' else order}*" in heading
    assert heading.count("*") == 1


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("order", ORDERS)
def test_it_fits_the_width(width, order):
    long = worker("a-deployment-of-gpus-with-a-long-name-7d9f8b6c5-x01yz", pools=("one", "two", "three"))
    found = lines(fleet(A, long, queues={"classify.a-pool-of-a-long-name.interactive": depth(**BUSY)}), width=width)
    assert max(map(len, found)) <= width
    if width >= 80:
        assert any("c5-x01yz:7" in line for line in found)  # the end of a pod's name is what tells it apart


@pytest.mark.parametrize(("height", "shown"), [(None, 50), (80, 50), (24, 14), (5, 2)])
def test_workers_that_have_no_room_are_counted(height, shown):
    found = lines(fleet(*(worker(f"w{n:02}") for n in range(50))), height=height)
    assert sum(line.startswith("w") and line[1].isdigit() for line in found) == shown
    assert ("and 36 more" in found) == (height == 24)
    if height and height > 5:
        assert len(found) <= height


def test_only_the_commonest_codes_are_shown():
    codes = {f"code-{n}": n for n in range(1, CODES_SHOWN + 3)}
    assert failures([worker("a", failed=codes), worker("b", failed={"code-1": 1})])["code-1"] == 2
    [line] = [line for line in lines(fleet(worker("a", failed=codes)), width=200) if line.startswith("failed")]
    assert line.startswith("failed  code-8 8  code-7 7")
    assert line.endswith("others 3")


def test_what_comes_from_outside_is_not_markup_and_not_control():
    found = "\n".join(lines(fleet(worker("[red]x[/red]\x1b[2J", images=1))))
    assert "[red]x[/red]" in found
    assert "\x1b" not in found


def test_as_json():
    found = json.loads(json.dumps(as_json(fleet(A, B, EXPORTER, dead_letters=5))))
    assert found["at"] == "2026-11-22T12:34:56+00:00"
    assert found["queues"]["classify.default.bulk"]["drain_seconds"] == pytest.approx(97_024 / 130.25)
    assert found["workers"][1]["figures"]["failed"] == {"fetch_timeout": 1200, "undecodable": 34}
    assert (found["failed"], found["dead_letters"]) == ({"fetch_timeout": 1200, "undecodable": 34}, 5)
