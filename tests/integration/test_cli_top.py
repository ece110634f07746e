"""`classifleet top` on a real Redis: one look, JSON, and on a real terminal."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from classifleet.ledger import WorkerFigures, WorkerInfo
from classifleet.producer import Fleet
from tests.cli_support import COMMAND
from tests.fixtures_ledger import Bench
from tests.support import RedisServer, wait_until

WORKER = WorkerInfo(
    "gpu-a:7:abcdef01",
    ("default",),
    ("imagenet@1",),
    "0.1.0",
    figures=WorkerFigures(12_345, {"fetch_timeout": 12}, 150.5, 27.31, 0.853),
)


class Screen:
    """A command in a terminal of tmux, 80 by 24."""

    def __init__(self, folder: Path, *command: str, env: dict[str, str]) -> None:
        self._socket = str(folder / "tmux")
        self._ended = folder / "ended"
        words = " ".join(map(shlex.quote, command))
        shell = f"{words}; echo $? > {shlex.quote(str(self._ended))}; exec sleep 600"
        self._tmux("-f", os.devnull, "new-session", "-d", "-x", "80", "-y", "24", shell, env={**os.environ, **env})

    def text(self) -> str:
        return self._tmux("capture-pane", "-p")

    def coloured(self) -> str:
        return self._tmux("capture-pane", "-p", "-e")

    def press(self, key: str) -> None:
        self._tmux("send-keys", key)

    def resize(self, columns: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", "24")

    def exit_code(self) -> int | None:
        text = self._ended.read_text() if self._ended.exists() else ""
        return int(text) if text.strip() else None

    def close(self) -> None:
        self._tmux("kill-server")

    def _tmux(self, *arguments: str, env: dict[str, str] | None = None) -> str:
        command = ["tmux", "-S", self._socket, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env, timeout=20).stdout


@pytest.fixture
def bench(settings, redis_url) -> Iterator[Bench]:
    bench = Bench(settings(namespace="default", broker_url=redis_url))
    yield bench
    bench.runner.close()


def busy(bench: Bench) -> None:
    bench.put("j", "0", images=30)
    bench.put("j", "1", images=34)
    bench.begin("j", "0")
    bench.run(bench.ledger.enlist(WORKER))


def open_screen(tmp_path: Path, url: str, **env: str) -> Screen:
    if shutil.which("tmux") is None:
        if os.environ.get("CI"):
            pytest.fail("tmux is not installed")
        pytest.skip("tmux is not installed")
    command = (*COMMAND, "top", "--interval", "0.2", "--broker-url", url)
    given = {"CLASSIFLEET_CONNECT_TIMEOUT_SECONDS": "0.5", "LANG": "C.UTF-8", **env}
    return Screen(tmp_path, *command, env=given)


def test_one_look_without_a_terminal(cli, bench, redis_url):
    busy(bench)
    for arguments in (("--once",), ()):
        ended = cli("top", *arguments, "--broker-url", redis_url)
        assert ended.code == 0
        assert "64 images at 0.0/s  1 worker  0 exporters" in ended.out
        assert "gpu-a:7 default 150.5 27.3 85% 12 now" in " ".join(ended.out.split())
        assert "failed  fetch_timeout 12" in ended.out
        assert "\x1b" not in ended.out
        assert max(map(len, ended.out.splitlines())) <= 80


def test_as_json(cli, bench, redis_url):
    busy(bench)
    [found] = cli("top", "--json", "--broker-url", redis_url).records
    queue = found["queues"]["classify.default.bulk"]
    assert (queue["queued_images"], queue["leased_images"]) == (34, 30)
    [worker] = found["workers"]
    assert worker["owner"] == WORKER.owner
    assert worker["figures"] == {
        **{"images": 12_345, "failed": {"fetch_timeout": 12}},
        **{"images_per_second": 150.5, "batch_images": 27.31, "batch_fill": 0.853},
    }


def test_a_worker_tells_what_it_has_done(cli, live_fleet):
    def worker():
        [found] = cli("top", "--json", "--broker-url", live_fleet.url).records[0]["workers"]
        return found

    before = wait_until(worker, "the worker's first word", 20)["figures"]
    with Fleet(live_fleet.url) as fleet:
        photo = f"{live_fleet.web}/chelsea.jpg"
        job = fleet.submit_many([photo] * 8 + ["data:,no-image"], models="imagenet")
        assert job.wait(60).failed == 1
    told = wait_until(lambda: (w := worker()["figures"])["images"] >= before["images"] + 9 and w, "its next word", 20)
    assert sum(told["failed"].values()) > sum(before["failed"].values())
    assert told["images_per_second"] > 0
    assert told["batch_images"] >= 1
    assert 0 < told["batch_fill"] <= 1


def test_without_redis_one_look_is_an_error(cli):
    assert "Redis" in cli("top", "--once", "--broker-url", "redis://127.0.0.1:1/0").error


def test_on_a_terminal(tmp_path: Path, bench: Bench, redis_url: str) -> None:
    busy(bench)
    screen = open_screen(tmp_path, redis_url)
    try:
        wait_until(lambda: "gpu-a:7" in screen.text(), "the first look", 30)
        shown = screen.text()
        assert "default.bulk                  34       30" in shown
        assert "q quits  s sorts the workers" in shown
        assert "worker*" in shown
        assert "\x1b[" in screen.coloured()
        bench.put("j", "2", images=8)
        wait_until(lambda: "72 images" in screen.text(), "a later look")
        screen.press("s")
        wait_until(lambda: "images/s*" in screen.text(), "another order")
        screen.resize(120)
        wait_until(lambda: "imagenet@1" in screen.text(), "the columns of a wider terminal")
        screen.press("q")
        assert wait_until(lambda: screen.exit_code() is not None, "its end")
        assert screen.exit_code() == 0
        assert screen.text().strip() == ""  # what was there before, which is nothing
    finally:
        screen.close()


def test_redis_goes_away_and_comes_back(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path / "redis") as server:
        url = f"{server.url}/0"
        with Fleet(url) as fleet:
            fleet.submit_many(["data:,1"], models="imagenet")
        screen = open_screen(tmp_path, url, NO_COLOR="1")
        try:
            wait_until(lambda: "1 image " in screen.text(), "the first look", 30)
            server.process.signal(signal.SIGSTOP)
            wait_until(lambda: "! no answer for" in screen.text(), "it to say so", 30)
            assert "1 image " in screen.text()
            server.process.signal(signal.SIGCONT)
            wait_until(lambda: "no answer" not in screen.text(), "it to be back", 30)
            assert "\x1b[31m" not in screen.coloured()
            screen.press("C-c")
            assert wait_until(lambda: screen.exit_code() is not None, "its end")
            assert screen.exit_code() == 130
        finally:
            server.process.signal(signal.SIGCONT)
            screen.close()
