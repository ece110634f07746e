"""`classifleet bulk` with nothing configured: a fleet of its own, that ends with the command."""

import json
import os
import signal

import pytest

from tests.cli_support import (
    CTRL_C,
    OnTerminal,
    Started,
    is_alive,
    photos_or_skip,
    read_records,
    right_answers,
    started,
)
from tests.support import wait_until

RIGHT = 87
IMAGES = 60


@pytest.fixture(autouse=True)
def _zoo(zoo, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_MODEL_REPOSITORY", str(zoo))


@pytest.fixture
def state(monkeypatch, tmp_path):
    """Where unfinished jobs are kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "classifleet" / "bulk"


def kept(state):
    return sorted(path.name for path in state.iterdir()) if state.is_dir() else []


def test_a_hundred_photos_with_nothing_configured(tmp_path, state):
    files = photos_or_skip()
    out = tmp_path / "out"
    with started(tmp_path, "bulk", files[0].parent, "--model", "imagenet", "--out", out) as command:
        ended = command.ended()
    assert ended.code == 0, ended
    records = read_records(out / "results.ndjson")
    names = [file.name for file in files]
    assert sorted(record["id"] for record in records) == names
    assert right_answers(records, names) >= RIGHT
    assert ended.out.startswith(f"job {json.loads((out / 'summary.json').read_text())['job']}\n")
    assert "starting an embedded Redis and a worker" in ended.err
    assert "images/s" in ended.err
    assert kept(state) == []


@pytest.mark.parametrize(
    ("stop", "code", "said"),
    [
        pytest.param(lambda command: command.signal(signal.SIGKILL), -9, "", marks=pytest.mark.slow),
        (lambda command: command.signal(signal.SIGINT), 130, "stopped; the same command with --job {} goes on"),
        (Started.kill_worker, 2, "error: the embedded worker has ended (killed by signal 9)"),
    ],
    ids=["killed", "interrupted", "without its worker"],
)
def test_a_command_that_was_stopped_is_gone_on_with_exactly_once(
    cli, tmp_path, state, photos, monkeypatch, stop, code, said
):
    monkeypatch.setenv("CLASSIFLEET_CHUNK_SIZE", "2")
    monkeypatch.setenv("CLASSIFLEET_CHUNKS_IN_FLIGHT", "2")
    monkeypatch.setenv("CLASSIFLEET_LEASE_SECONDS", "2")
    folder = tmp_path / "uploads"
    folder.mkdir()
    originals = sorted(photos.iterdir())
    names = [f"{n:03d}.jpg" for n in range(IMAGES)]
    for n, name in enumerate(names):
        os.link(originals[n % len(originals)], folder / name)
    out = tmp_path / "out"
    with started(tmp_path, "bulk", folder, "--out", out) as command:
        partial = out / f".results.ndjson.{command.job}"
        # The file is written through a buffer: its first bytes mean that some images are done, and not all.
        wait_until(lambda: partial.exists() and partial.stat().st_size, "the first results", 120)
        stop(command)
        ended = command.ended()
        assert len(command.seen) >= 2
        command.require_no_children()
    assert ended.code == code
    assert said.format(command.job) in ended.err
    assert "Traceback" not in ended.err
    assert kept(state) == [command.job]
    if stop is Started.kill_worker:
        assert f"the same command with --job {command.job} goes on" in ended.err
    again = cli("bulk", folder, "--out", out, "--job", command.job)
    assert again.code == 0, again
    assert sorted(record["id"] for record in read_records(out / "results.ndjson")) == names
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["images"], summary["ok"]) == (IMAGES, IMAGES)
    assert sorted(path.name for path in out.iterdir()) == ["failures.ndjson", "results.ndjson", "summary.json"]
    assert kept(state) == []


def test_ctrl_c_on_a_terminal_while_the_models_load(tmp_path, state, photos):
    with OnTerminal("bulk", photos, "--out", tmp_path / "out") as command:
        wait_until(lambda: "imagenet@1: loading" in command.screen, "the model to load", 60)
        command.press(CTRL_C)
        assert command.process.wait(20) == 130
        wait_until(lambda: not [pid for pid in command.seen if is_alive(pid)], "the end of all children")
        wait_until(lambda: "stopped before anything was submitted" in command.screen, "what it says")
    assert len(command.seen) >= 2
    assert "Traceback" not in command.screen
    assert kept(state) == []


def test_from_s3_to_s3(cli, state, photos, s3, monkeypatch):
    for name, value in s3.settings_kwargs.items():
        monkeypatch.setenv(f"CLASSIFLEET_{name.upper()}", str(value))
    for name in ("chelsea.jpg", "coffee.jpg"):
        s3.client.put_object(Bucket=s3.bucket, Key=f"in/{name}", Body=(photos / name).read_bytes())
    ended = cli("bulk", f"{s3.url}/in", "--out", f"{s3.url}/out")
    assert ended.code == 0, ended

    def get(name):
        return s3.client.get_object(Bucket=s3.bucket, Key=f"out/{ended.job}/{name}")["Body"].read()

    [part] = json.loads(get("manifest.json"))["parts"]
    records = [json.loads(line) for line in get(part["name"]).splitlines()]
    assert sorted(record["id"] for record in records) == ["in/chelsea.jpg", "in/coffee.jpg"]
    assert json.loads(get("summary.json"))["ok"] == 2
    assert kept(state) == []


def test_a_fleet_that_does_not_start_keeps_nothing(cli, tmp_path, state, photos):
    ended = cli("bulk", photos, "--model", "cats", "--out", tmp_path / "out")
    assert "the worker did not start: " in ended.error
    assert kept(state) == []
    assert list((tmp_path / "out").iterdir()) == []


def test_two_commands_do_not_share_a_job(cli, tmp_path, state, photos, monkeypatch):
    from classifleet.producer import embedded

    monkeypatch.setattr(embedded, "LOCK_SECONDS", 0.1)
    with embedded.embedded_redis(state / "nightly"):
        error = cli("bulk", photos, "--out", tmp_path / "out", "--job", "nightly").error
    assert error == f"another embedded fleet is at work in {state}/nightly"
    assert kept(state) == ["nightly"]
