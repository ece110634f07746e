"""`classifleet worker` with one thing broken; the command line says what, and not the environment.

python -m tests.chaos.saboteur crash before-part 3      dies when it is about to write its third part
python -m tests.chaos.saboteur zombie 3                 stops itself (SIGSTOP) before its third commit
python -m tests.chaos.saboteur decoder                  decodes as the end of each image says (see `hostile`)
python -m tests.chaos.saboteur forward FOLDER           its forward passes wait while there is FOLDER/hold
python -m tests.chaos.saboteur newer                    understands the payloads of the next version
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from classifleet.config import Payload
from classifleet.ledger import Call, SyncRunner, _scripts
from classifleet.producer.cli import main
from classifleet.worker import pipeline, sandbox
from classifleet.worker.decode import prepare
from classifleet.worker.forward import Forward
from classifleet.worker.sink import Sinks
from tests.chaos.hostile import CHILD, hostile

CRASHED: Final = 77
GAPS: Final = ("before-part", "part-commit", "commit-ack", "after-ack")
HOLD: Final = "hold"
NEWER_FIELD: Final = "hint"


def at_turn(turn: int, harm: Callable[[], object]) -> Callable[[], None]:
    """A function that does harm once, when it is called for the n-th time or later and other chunks are at work."""
    turns, once = itertools.count(1), threading.Lock()

    def called() -> None:
        if next(turns) >= turn and at_work() and once.acquire(blocking=False):
            harm()

    return called


def at_work() -> bool:
    """Whether a chunk is being classified: one that is neither committed nor about to be."""
    from classifleet.worker.app import runtime

    return bool(runtime.chunks._running)


def crash() -> None:
    """As `kill -9`: no handler, no flush."""
    os._exit(CRASHED)


def wrap(owner: Any, name: str, *, before: Callable[..., object] | None = None, after: Any = None) -> None:
    """Call a function before or after a method, with the method's arguments."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        if before is not None:
            before(*args)
        answer = original(*args, **options)
        if after is not None:
            after(*args)
        return answer

    setattr(owner, name, wrapped)


def on_commit(act: Callable[[], None]) -> Callable[..., None]:
    """For `SyncRunner.run`: act on commits alone."""

    def look(_runner: SyncRunner, call: Call[Any]) -> None:
        if call.ask is _scripts.COMMIT:
            act()

    return look


def install_crash(gap: str, turn: int) -> None:
    """Die in one of the gaps."""
    act = at_turn(turn, crash)
    match gap:
        case "before-part":
            wrap(Sinks, "write_part", before=lambda *_: act())
        case "part-commit":
            wrap(Sinks, "write_part", after=lambda *_: act())
        case "commit-ack":
            wrap(SyncRunner, "run", after=on_commit(act))
        case "after-ack":
            from classifleet.worker.transport.channel import QoS

            wrap(QoS, "ack", after=lambda *_: act())
        case _:
            raise SystemExit(f"no gap {gap!r}: {', '.join(GAPS)}")


def install_zombie(turn: int) -> None:
    """Sleep before a commit until somebody sends SIGCONT, and go on as if no time had passed."""
    act = at_turn(turn, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    wrap(SyncRunner, "run", before=on_commit(act))


def install_decoder() -> None:
    """Decode as the image says, here and in the sandbox."""
    pipeline.prepare = lambda data, *rest: hostile(prepare, data, *rest)
    command = sandbox.Sandbox.__init__.__kwdefaults__
    command["command"] = (sys.executable, "-I", "-B", str(CHILD))


def install_forward(folder: Path) -> None:
    """While it waits in a forward pass, a file named by its process says so."""
    mine, hold = folder / str(os.getpid()), folder / HOLD

    def wait(*_: object) -> None:
        while hold.exists():
            mine.touch()
            time.sleep(0.01)
        mine.unlink(missing_ok=True)

    wrap(Forward, "_scores", before=wait)


def in_forward(folder: Path) -> set[str]:
    """The processes that wait in a forward pass."""
    return {file.name for file in folder.iterdir()} - {HOLD}


def install_newer() -> None:
    """Payloads of the next version have one field more."""
    validate = Payload.model_validate_json

    def lenient(data: bytes, **options: Any) -> Payload:
        import json

        fields = json.loads(data)
        fields.pop(NEWER_FIELD, None)
        return validate(json.dumps(fields), **options)

    Payload.model_validate_json = lenient  # type: ignore[method-assign, assignment]


def run(what: str, *arguments: str) -> None:
    """Break one thing, then be a worker."""
    match what:
        case "crash":
            install_crash(arguments[0], int(arguments[1]))
        case "zombie":
            install_zombie(int(arguments[0]))
        case "decoder":
            install_decoder()
        case "forward":
            install_forward(Path(arguments[0]))
        case "newer":
            install_newer()
        case _:
            raise SystemExit(f"unknown: {what}")
    sys.argv = ["classifleet", "worker"]
    main()


if __name__ == "__main__":
    run(*sys.argv[1:])
