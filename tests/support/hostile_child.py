"""A sandbox's child whose decoder does what the image says, and decodes what says nothing. Started by its path."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.decode import prepare
from classifleet.worker.sandbox_child import FRAME, READY, SandboxLimits, serve

corrupted = False


def hostile(data: bytes, specs: Any, limits: Any) -> Any:
    global corrupted
    name, _, _ = data.partition(b":")
    match name.decode(errors="replace"):
        case "segfault":
            ctypes.string_at(0)
        case "exhaust":
            hoard = [bytearray(16 << 20) for _ in itertools.count()]
            raise AssertionError(len(hoard))
        case "abort":
            os.abort()
        case "spin":
            while True:
                pass
        case "sleep":
            threading.Event().wait()
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "killed":  # from outside, the first time
            flag = Path(data.partition(b":")[2].partition(b"\n")[0].decode())
            if not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            data = data.partition(b"\n")[2]
        case "bug":
            raise KeyError("secret")
        case "corrupt":
            corrupted = True
        case "state":
            found = {
                "environment": sorted(os.environ),
                "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
                "files": resource.getrlimit(resource.RLIMIT_FSIZE)[0],
                "pid": os.getpid(),
                "modules": [name for name in ("torch", "celery", "boto3", "redis") if name in sys.modules],
                "path": sys.path,
            }
            print("a stray print")
            raise ImageError(ErrorCode.UNDECODABLE, json.dumps(found))
        case _ if corrupted:
            ctypes.string_at(0)
    return prepare(data.removeprefix(b"corrupt:"), specs, limits)


def lie(answer: bytes) -> None:
    """Any answer at all to the first request."""
    sys.stdout.buffer.write(FRAME.pack(len(READY)) + READY)
    sys.stdout.buffer.flush()
    sys.stdin.buffer.read(FRAME.size)
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    threading.Event().wait()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        lie(bytes.fromhex(sys.argv[1]))
    serve(hostile, SandboxLimits(**json.loads(sys.argv[1])))
