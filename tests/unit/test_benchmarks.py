"""The statistics of the benchmarks, and how their outcomes become a page."""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import time
from pathlib import Path

import pytest
from benchmarks import _gpu_decode, bench, bulk, cancel, cost, gpu, lanes, report
from benchmarks._load import closed_loop, open_loop
from benchmarks._outcome import Outcome
from benchmarks._photos import make_photos
from benchmarks._statistics import (
    agreement,
    median,
    percentile,
    poisson_arrivals,
    ratio,
    ratio_of_rounds,
    slope_share,
)

from classifleet.worker.models import ModelDescription
from tests.models_support import description_fields


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([1], 50, 1),
        ([3, 1, 2], 50, 2),
        ([1, 2], 50, 1.5),
        ([1, 2, 3, 4, 5], 95, 4.8),
        ([5, 1], 0, 1),
        ([5, 1], 100, 5),
    ],
)
def test_percentile(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


def test_percentiles_are_those_of_the_standard_library() -> None:
    values = [random.Random(1).random() for _ in range(101)]
    wanted = statistics.quantiles(values, n=100, method="inclusive")
    assert [percentile(values, n) for n in range(1, 100)] == pytest.approx(wanted)
    assert median(values) == percentile(values, 50)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1], -1), ([1], 101)])
def test_no_percentile(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, percent)


def test_a_slow_round_cancels_out_of_ratios() -> None:
    assert ratio_of_rounds([40, 4, 40], [10, 1, 10]) == 4
    assert ratio_of_rounds([40, 4, 44], [10, 1, 10]) == 4
    assert math.isnan(ratio(1, 0))
    with pytest.raises(ValueError, match="shorter"):
        ratio_of_rounds([1, 2], [1])


def test_slope() -> None:
    assert slope_share([100, 50, 110]) == pytest.approx(0.1)


def test_agreement() -> None:
    assert agreement([1, 2, 3, 4], [1, 2, 3, 5]) == 0.75
    with pytest.raises(ValueError, match="longer"):
        agreement([1], [1, 2])


def test_poisson_arrivals() -> None:
    arrivals = poisson_arrivals(50, 200, seed=3)
    gaps = [b - a for a, b in zip([0.0, *arrivals], arrivals, strict=False)]
    assert len(arrivals) == pytest.approx(10_000, rel=0.05)
    assert arrivals == sorted(arrivals)
    assert max(arrivals) < 200
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)  # exponential
    assert arrivals == poisson_arrivals(50, 200, seed=3) != poisson_arrivals(50, 200, seed=4)
    with pytest.raises(ValueError, match="rate"):
        poisson_arrivals(0, 1)


def test_a_latency_counts_from_when_the_request_was_due() -> None:
    """A system that stands still for 0.2 s is late for all that came meanwhile: no coordinated omission."""

    async def stuck(_: Path) -> None:
        time.sleep(0.2)  # blocks the loop, as a stalled client would

    seconds = asyncio.run(open_loop(stuck, [0.0, 0.01, 0.02], [Path("a")]))
    assert seconds[0] >= 0.2
    assert seconds[1] >= 0.38
    assert seconds[2] >= 0.57


def test_a_closed_loop_keeps_order_and_its_bound() -> None:
    under_way: list[int] = [0, 0]

    async def one(path: Path) -> int:
        under_way[0] += 1
        under_way[1] = max(under_way)
        await asyncio.sleep(0.001 * (5 - int(path.name) % 5))
        under_way[0] -= 1
        return int(path.name)

    paths = [Path(str(number)) for number in range(40)]
    assert asyncio.run(closed_loop(one, paths, 4)) == list(range(40))
    assert under_way[1] == 4


def test_photos_are_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    first, again = make_photos(tmp_path / "1", 12), make_photos(tmp_path / "2", 12)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert len({path.read_bytes() for path in first}) == 12


def test_conclusions_of_the_bulk_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        "classifleet (auto)": bulk.Measured([200.0, 20.0, 210.0], [205.0] * 3, [0.99] * 3, "openvino/bf16"),
        "ceiling (auto)": bulk.Measured([220.0, 22.0, 220.0], [230.0] * 3, [0.99] * 3, "openvino/bf16, batch 8"),
        "peer A": bulk.Measured([40.0, 4.0, 44.0], [], [1.0] * 3, "a 1.0"),
        "peer B": bulk.Measured([20.0, 5.0, 20.0], [], [1.0] * 3, "b 1.0"),
        "peer C": bulk.Measured(failed="no wheel"),
    }
    outcome = Outcome("bulk", "Bulk throughput")
    bulk.conclude(outcome, found, photos=500, times=4)
    targets = {target.name: target for target in outcome.targets}
    assert targets["auto against the best peer (peer A)"].found == "5.00"
    assert targets["auto against its no-queue ceiling"].found == "0.91"
    assert all(target.met for target in outcome.targets)
    assert outcome.values["best_peer"] == "peer A"
    assert outcome.tables[0].rows[0][:6] == ["classifleet (auto)", "200.0", "5.00", "0.91", "205.0", "0.990"]
    assert any("peer C" in note and "no wheel" in note for note in outcome.notes)
    assert "met" in capsys.readouterr().out


def test_conclusions_about_lanes() -> None:
    def timed(milliseconds: float, batch_ms: float = 0.0) -> lanes.Timed:
        return lanes.Timed(milliseconds, batch_ms, {"queue": 0.01})

    idle, stalled = [timed(20.0)] * 20, [timed(900.0, 45.0)] * 20
    for loaded, met, found in (([timed(109.0, 45.0)] * 20, True, "-1.0"), ([timed(109.0, 44.0)] * 20, False, "+1.0")):
        outcome = Outcome("lanes", "Lanes")
        lanes.conclude(outcome, [(idle, loaded), (idle, stalled), (idle, loaded)])
        [target] = outcome.targets
        assert (target.met, target.found) == (met, f"{found} ms of that")


def test_conclusions_about_cost_and_cancelling() -> None:
    cheap, dear = cost.Cost(1500, 6.5, 500), cost.Cost(151, 0.51, 6000)
    outcome = Outcome("cost", "Cost")
    cost.conclude(outcome, {1: cheap, 32: dear})
    assert [target.met for target in outcome.targets] == [True, False, False]
    outcome = Outcome("cancel", "Cancel")
    cancel.conclude(outcome, 1_000_000, state=0.9, seconds=61.0, cpu=30.0)
    assert [(target.name, target.met) for target in outcome.targets] == [
        ("cancel of 1,000,000: its state", True),
        ("cancel of 1,000,000: its records", False),
    ]


@pytest.mark.parametrize(("device", "met"), [("cuda:0", [False, True]), ("cpu", [])])
def test_only_a_gpu_meets_or_misses_targets_of_a_gpu(device: str, met: list[bool]) -> None:
    outcome = Outcome("gpu", "GPU")
    gpu.conclude(outcome, "m", device, dict(zip(gpu.STAGES, ([100.0], [80.0], [60.0], [59.0]), strict=True)))
    assert [target.met for target in outcome.targets] == met
    assert bool(outcome.notes) != bool(met)


def test_decoders_that_are_not_there_are_named() -> None:
    outcome = Outcome("gpu", "GPU")
    gpu.decoders(outcome, "m", {"decoded by the CPU": 900.0, "decoded by torchcodec": "ImportError: no torchcodec"})
    assert outcome.tables[0].rows == [["decoded by the CPU", "900.0"]]
    assert outcome.notes == ["m: not decoded by torchcodec: ImportError: no torchcodec"]


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # of torchvision: superseded by torchcodec
def test_what_the_device_decodes_and_resizes_is_what_a_worker_does(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("skimage")
    spec = ModelDescription.model_validate(description_fields(), strict=False).preprocess
    files = [path.read_bytes() for path in make_photos(tmp_path, 4)]
    worker, device = (make(spec, "cpu")(files) for make in list(_gpu_decode.DECODERS.values())[:2])
    assert worker.shape == device.shape == (4, 3, *spec.output_size)
    assert (worker.float() - device.float()).abs().mean() < 3


def test_every_part_has_its_place_on_the_page() -> None:
    places = [report._place(part) for part in bench.PARTS]
    assert places == list(range(len(bench.PARTS)))


def test_the_page(tmp_path: Path) -> None:
    outcome = Outcome("bulk", "Bulk throughput")
    outcome.table("500 photos", ["system", "images/s"], [["ours", 200], ["theirs", 40]])
    outcome.target("against the best peer", "at least 4", "5.0", met=True)
    outcome.target("against the ceiling", "at least 0.9", "0.7", met=False)
    outcome.write(tmp_path / "bulk.json")
    text = Outcome("cost", "Cost", values={"text": "printed | as it came"})
    text.write(tmp_path / "cost.json")
    read = [Outcome.read(tmp_path / name) for name in ("cost.json", "bulk.json")]
    assert read[1].tables == outcome.tables
    page = report.page({"CPU": "a CPU", "Python": "3.11"}, read)
    assert "| CPU | a CPU |" in page
    assert "| system | images/s |\n| --- | ---: |\n| ours | 200 |\n| theirs | 40 |" in page
    assert "| bulk | against the best peer | at least 4 | 5.0 | yes |" in page
    assert "| bulk | against the ceiling | at least 0.9 | 0.7 | **no** |" in page
    assert "```text\nprinted | as it came\n```" in page
    assert page.index("## Bulk") < page.index("## Cost")


def test_a_file_that_is_no_outcome(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"tables": 1}))
    with pytest.raises(ValueError, match=r"other\.json"):
        Outcome.read(path)
