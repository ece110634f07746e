"""`classifleet up`: an embedded fleet in the foreground."""

import re
import signal

import pytest

from classifleet.producer import Fleet
from classifleet.producer.embedded import embedded_redis
from tests.cli_support import CTRL_C, OnTerminal, is_alive, started
from tests.support import wait_until


@pytest.fixture(autouse=True)
def _zoo(zoo, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_MODEL_REPOSITORY", str(zoo))


def url_in(text):
    return re.search(r"export CLASSIFLEET_BROKER_URL=(redis://127\.0\.0\.1:\d+/0)", text)


def test_it_prints_the_progress_of_the_models_and_the_url_and_serves_until_sigterm(tmp_path, photos, cli):
    data = tmp_path / "data"
    with started(tmp_path, "up", "--model", "imagenet", "--data", data, "--file-root", photos) as command:
        match = wait_until(lambda: url_in(command.err), "the URL", 120)
        assert re.search(r"model imagenet@1: loading\n(.*\n)*model imagenet@1: ready\n", command.err)
        assert re.search(r"metrics +http://127\.0\.0\.1:\d+/metrics\n", command.err)
        url = match[1]
        ended = cli("classify", f"file://{photos}/coffee.jpg", "--json", "--broker-url", url)
        assert ended.records[0]["models"]["imagenet@1"]["top"] == "espresso"
        with Fleet(url) as fleet:
            job = fleet.jobs()[0].id
        error = cli("up", "--data", data)  # a second fleet on the same data
        assert error.error == f"another embedded fleet is at work in {data}"
        command.signal(signal.SIGTERM)
        assert command.wait(20) == 143
        assert len(command.seen) >= 2
        command.require_no_children()
        assert "stopping…" in command.err
    assert (data / "worker.log").is_file()
    with embedded_redis(data) as url, Fleet(url) as fleet:  # what it was told to keep
        assert fleet.job(job).progress().ok == 1


def test_ctrl_c_on_a_terminal_ends_it_and_leaves_no_process():
    with OnTerminal("up", "--model", "imagenet") as command:
        wait_until(lambda: "Ctrl-C stops it" in command.screen, "the fleet", 120)
        assert url_in(command.screen)
        command.press(CTRL_C)
        assert command.process.wait(20) == 130
        assert len(command.seen) >= 2
        wait_until(lambda: not [pid for pid in command.seen if is_alive(pid)], "the end of all children")
    assert "Traceback" not in command.screen
    assert "imagenet@1: warming" in command.screen


def test_it_does_not_go_on_without_its_worker(tmp_path):
    with started(tmp_path, "up", "--model", "imagenet") as command:
        wait_until(lambda: url_in(command.err), "the URL", 120)
        command.kill_worker()
        ended = command.ended()
        assert ended.error == "the embedded worker has ended (killed by signal 9)"
        command.require_no_children()


def test_a_folder_that_is_not_there(cli, tmp_path):
    assert cli("up", "--file-root", tmp_path / "none").error == f"--file-root {tmp_path}/none: there is no such folder"
