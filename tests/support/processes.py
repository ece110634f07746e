"""Child processes that end with the test, whatever happens to the test.

A process gets a group of its own, which is ended by its id on close. If pytest itself is killed, Linux ends the
process (PR_SET_PDEATHSIG; set by a launcher that then becomes the command, because a `preexec_fn` is not safe
beside threads).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_DIE_WITH_PARENT: Final = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
_GRACE_SECONDS: Final = 5.0
_LOG_TAIL_BYTES: Final = 4000


class ManagedProcess:
    """A running command whose output goes to a log file; a context manager that ends its whole group."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        graceful: bool = True,
    ) -> None:
        self.log = log
        self._graceful = graceful
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-IS", "-c", _DIE_WITH_PARENT, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id, which is also the group's."""
        return self.process.pid

    def running(self) -> bool:
        """Whether the main process lives."""
        return self.process.poll() is None

    def tail(self) -> str:
        """The end of the log, for messages."""
        return self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to the main process alone."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """End the process, then whatever is left of its group; returns the exit status."""
        try:
            if self.running() and self._graceful:
                self.process.terminate()
                self.process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            pass  # the group is killed below
        finally:
            _kill_group(self.pid)
        return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.stop()


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; macOS: EPERM for a group of zombies
        os.killpg(group, signal.SIGKILL)
