"""Child processes that end with their parent, however that ends.

What Linux does (prctl(2), PR_SET_PDEATHSIG): the kernel sends a child a signal of its choice when the *thread* that
forked it ends. The choice survives execve. It has to be made in the child, and a parent that is gone by then sends
nothing any more. A `preexec_fn` could make it, but is not safe beside threads. So a child starts as a small launcher
that makes the choice, looks for its parent once more, and becomes the command. Start children from a thread that
lives as long as they should: the main one.

Other systems have nothing like it: there a parent that is killed with SIGKILL leaves its children behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Final

STOP_SECONDS: Final = 5.0

_LAUNCHER: Final = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""

Process = subprocess.Popen[bytes]


@contextmanager
def child(
    command: Sequence[str],
    *,
    output: IO[bytes] | int = subprocess.DEVNULL,
    environment: Mapping[str, str] | None = None,
    keep_open: Sequence[int] = (),
    stop_seconds: float = STOP_SECONDS,
) -> Iterator[Process]:
    """Run a command until the block ends.

    It gets a session of its own: the terminal's Ctrl-C is for the parent to handle.

    Args:
        command: The program, from PATH or by its path, and its arguments.
        output: Where standard output and standard error go.
        environment: Its environment; default: this process'.
        keep_open: File descriptors that it inherits.
        stop_seconds: How long it may take to end after SIGTERM; then it is killed.
    """
    process = subprocess.Popen(
        [sys.executable, "-IS", "-c", _LAUNCHER, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=None if environment is None else dict(environment),
        pass_fds=tuple(keep_open),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        stop(process, stop_seconds)


def stop(process: Process, seconds: float) -> None:
    """SIGTERM, and SIGKILL when the end does not come; an interrupted wait kills at once."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass  # killed below
    finally:
        process.kill()  # does nothing if it has ended
        process.wait()
