"""`classifleet bulk` with nothing configured: a fleet of its own, that ends with the command."""

import json
import os
import signal

import pytest

from tests.cli_support import CTRL_C, OnTerminal, is_alive, photos_or_skip, read_records, right_answers, started
from tests.support import wait_until

RIGHT = 87


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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_was_stopped_is_gone_on_with_exactly_once(cli, tmp_path, state, photos, monkeypatch, number):
    monkeypatch.setenv("CLASSIFLEET_CHUNK_SIZE", "4")
    monkeypatch.setenv("CLASSIFLEET_CHUNKS_IN_FLIGHT", "4")
    monkeypatch.setenv("CLASSIFLEET_LEASE_SECONDS", "2")
    folder = tmp_path / "uploads"
    folder.mkdir()
    originals = sorted(photos.iterdir())
    names = [f"{n:03d}.jpg" for n in range(120)]
    for n, name in enumerate(names):
        os.link(originals[n % len(originals)], folder / name)
    out = tmp_path / "out"
    with started(tmp_path, "bulk", folder, "--out", out) as command:
        partial = out / f".results.ndjson.{command.job}"
        # The file is written through a buffer: its first bytes mean that many images are done, and not all.
        wait_until(lambda: partial.exists() and partial.stat().st_size, "the first results", 120)
        command.signal(number)
        ended = command.ended()
        assert len(command.seen) >= 2
        command.require_no_children()
    assert kept(state) == [command.job]
    if number == signal.SIGINT:
        assert ended.code == 130
        assert f"stopped; the same command with --job {command.job} goes on where it was" in ended.err
        assert "Traceback" not in ended.err
        assert list(out.iterdir()) == []
    again = cli("bulk", folder, "--out", out, "--job", command.job)
    assert again.code == 0, again
    assert sorted(record["id"] for record in read_records(out / "results.ndjson")) == names
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["images"], summary["ok"]) == (120, 120)
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


def test_a_sink_of_this_machine(cli, tmp_path, state, photos):
    sink = f"file://{tmp_path}/sink"
    ended = cli("bulk", photos, "--include", "c*", "--models", "imagenet,nsfw", "--out", sink)
    assert ended.code == 0, ended
    written = tmp_path / "sink" / ended.job
    manifest = json.loads((written / "manifest.json").read_text())
    records = [record for part in manifest["parts"] for record in read_records(written / part["name"])]
    assert sorted(record["id"] for record in records) == ["chelsea.jpg", "coffee.jpg"]
    assert all(set(record["models"]) == {"imagenet@1", "nsfw@1"} for record in records)
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
