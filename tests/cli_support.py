"""Helpers for tests of the command line: run it here or as a process, press Ctrl-C, count what it leaves."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from classifleet.producer.cli import main
from tests.support import wait_until

COMMAND = (sys.executable, "-P", "-m", "classifleet.producer.cli")
PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos"
CTRL_C = b"\x03"

_ON_TERMINAL = """
import os, sys
terminal = os.open(sys.argv[1], os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(terminal, number)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[Any]:
        """Standard output as JSON, a value a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def job(self) -> str:
        """The id that `bulk` prints first."""
        return self.out.splitlines()[0].removeprefix("job ")

    @property
    def error(self) -> str:
        """The one line of an error."""
        assert self.code == 2, self
        [line] = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in self.err
        return line.removeprefix("error: ")


def photos_or_skip() -> list[Path]:
    """The hundred photos, of which the k-th is of class 10k+4."""
    if not PHOTOS.is_dir():
        pytest.skip("the shared photos are not here")
    return sorted(PHOTOS.iterdir())


def right_answers(records: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> int:
    """How many records name the class of their photo; `ids` in the photos' order."""
    by_id = {record["id"]: record for record in records}
    tops = [by_id[name]["models"]["imagenet@1"]["predictions"][0]["class_id"] for name in ids]
    return sum(top == 10 * k + 4 for k, top in enumerate(tops))


def read_records(file: Path) -> list[dict[str, Any]]:
    """A file of records."""
    return [json.loads(line) for line in file.read_text().splitlines()]


class Cli:
    """Runs commands in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def __call__(self, *arguments: object) -> Ended:
        self._monkeypatch.setattr(sys, "argv", ["classifleet", *map(str, arguments)])
        self._monkeypatch.setenv("COLUMNS", "80")
        self._capfd.readouterr()
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as caught:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = self._capfd.readouterr()
        return Ended(int(caught.value.code or 0), out, err)


class Started:
    """A command in a process of its own; `out` and `err` are what it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out = out
        self._err = err
        self.seen: set[int] = set()

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def job(self) -> str:
        """The id that `bulk` prints first, when it has."""
        line = wait_until(lambda: self.out.partition("\n")[0], "the job's id", 30)
        return line.removeprefix("job ")

    def children(self) -> set[int]:
        """Its children and theirs; remembered, to look for them when it has ended."""
        self.seen |= descendants(self.process.pid)
        return self.seen

    def signal(self, number: int) -> None:
        self.children()
        self.process.send_signal(number)

    def kill_worker(self) -> None:
        """As the kernel does for want of memory."""
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in self.children()}
        [worker] = [pid for pid, words in commands.items() if words[-2:] == [b"worker", b""]]
        os.kill(worker, signal.SIGKILL)

    def wait(self, timeout: float = 60) -> int:
        return self.process.wait(timeout)

    def ended(self) -> Ended:
        return Ended(self.wait(), self.out, self.err)

    def require_no_children(self) -> None:
        """None of the children that were ever seen lives."""
        wait_until(lambda: not [pid for pid in self.seen if is_alive(pid)], f"the end of {self.seen}", 10)


@contextmanager
def started(folder: Path, *arguments: object, env: Mapping[str, str] | None = None) -> Iterator[Started]:
    """Start a command; whatever is left of it is killed when the block ends."""
    number = len(list(folder.glob("cli-*.out")))
    out, err = folder / f"cli-{number}.out", folder / f"cli-{number}.err"
    environment = {**os.environ, "COLUMNS": "80", **(env or {})}
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            start_new_session=True,
        )
    command = Started(process, out, err)
    try:
        yield command
    finally:
        _kill(command)


class OnTerminal:
    """A command on a terminal of its own, 80 columns wide; `screen` is all that it has written."""

    def __init__(self, *arguments: object, env: Mapping[str, str] | None = None) -> None:
        self._keyboard, self._terminal = pty.openpty()
        self._written = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _ON_TERMINAL, os.ttyname(self._terminal), *COMMAND, *map(str, arguments)],
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80", **(env or {})},
            start_new_session=True,  # so that the terminal it opens becomes its own
        )
        self._reader.start()
        self.seen: set[int] = set()

    @property
    def screen(self) -> str:
        return self._written.decode(errors="replace")

    def press(self, keys: bytes) -> None:
        self.seen |= descendants(self.process.pid)
        os.write(self._keyboard, keys)

    def __enter__(self) -> OnTerminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.seen |= descendants(self.process.pid)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in self.seen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.close(self._terminal)
        self._reader.join()
        os.close(self._keyboard)

    def _read(self) -> None:
        with suppress(OSError):  # EIO: the last of the terminal's processes is gone
            while data := os.read(self._keyboard, 65536):
                self._written += data


def descendants(pid: int) -> set[int]:
    """The living children of a process, and theirs."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found: set[int] = set()
    left = [pid]
    while left:
        for child in children.get(left.pop(), ()):
            found.add(child)
            left.append(child)
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be buried does not."""
    stat = _stat(pid)
    return bool(stat) and stat[0] not in "ZX"


def _stat(pid: int) -> list[str]:
    """State, parent and so on; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _kill(command: Started) -> None:
    command.children()
    if command.process.poll() is None:
        command.process.kill()
    command.process.wait()
    for pid in command.seen:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
