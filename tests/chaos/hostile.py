"""A decoder that does what the last bytes of an image say. Also a sandbox's child, started by its path."""

from __future__ import annotations

import ctypes
import itertools
import json
import sys
import threading
from pathlib import Path
from typing import Any, Final

MARK: Final = b"\nchaos:"
CHILD: Final = Path(__file__)
_HOARD_BYTES: Final = 16 << 20


def harmful(photo: bytes, harm: str) -> bytes:
    """The photo, with an order behind its end."""
    return photo + MARK + harm.encode()


def hostile(prepare: Any, data: bytes, *rest: Any) -> Any:
    """Obey the order, or decode."""
    match data.rpartition(MARK)[2] if MARK in data[-64:] else b"":
        case b"segfault":
            ctypes.string_at(0)
        case b"hoard":
            hoard = [bytearray(_HOARD_BYTES) for _ in itertools.count()]
            raise AssertionError(len(hoard))
        case b"hang":
            threading.Event().wait()
    return prepare(data, *rest)


def _serve() -> None:
    from classifleet.worker.decode import prepare
    from classifleet.worker.sandbox_child import SandboxLimits, serve

    serve(lambda *request: hostile(prepare, *request), SandboxLimits(**json.loads(sys.argv[1])))


if __name__ == "__main__":
    _serve()
