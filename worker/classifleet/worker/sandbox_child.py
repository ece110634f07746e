"""The process that `sandbox` starts: limits itself, then prepares one image after the other until its input ends.

Both ends speak in frames: a length and as many bytes. A request is a header in JSON and the image, an answer a header
and the pixels of each model. What is run is fixed in this module; no request can name anything else.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.config.record import ImageInfo
from classifleet.worker.decode import prepare
from classifleet.worker.headers import DecodeLimits
from classifleet.worker.models.description import Preprocess

Prepared = tuple[ImageInfo, dict[str, NDArray[np.uint8]]]
Prepare = Callable[[bytes, Mapping[str, Preprocess], DecodeLimits], Prepared]
FRAME: Final = struct.Struct(">Q")
READY: Final = b"ready"
ORPHAN_SECONDS: Final = 5.0
"""How much later than its parent would have a child ends itself: only when there is no parent any more."""
_WORST_OOM_SCORE: Final = "1000"
_PROC: Final = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What one image may take: memory beyond that of an idle child, time of a core, time on the clock."""

    memory_bytes: int = 2 << 30
    cpu_seconds: float = 10.0
    wall_seconds: float = 30.0


def serve(prepare: Prepare, limits: SandboxLimits) -> None:
    """Answer requests on stdin until it ends. Returns only then; limits kill."""
    source = sys.stdin.buffer
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # a stray print must not look like an answer
    _restrict(limits)
    _write(answers, READY)
    while (header := _read(source)) is not None:
        data = _read(source)
        if data is None:
            return
        _start_clocks(limits)
        answer, arrays = _answer(prepare, json.loads(header), data, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(answers, json.dumps(answer).encode(), *(array.tobytes() for array in arrays))


def _answer(
    prepare: Prepare, header: dict[str, Any], data: bytes, limits: SandboxLimits
) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    specs = {digest: Preprocess.model_validate_json(spec) for digest, spec in header["specs"].items()}
    try:
        info, arrays = prepare(data, specs, DecodeLimits(**header["limits"]))
    except ImageError as error:
        return {"error": {"code": error.code.value, "message": str(error)}}, []
    except MemoryError:
        return {"died": f"it needs more than {limits.memory_bytes >> 20} MiB of memory"}, []
    except Exception as error:  # noqa: BLE001 - a defect of ours: the type alone, as in the worker
        return {"error": {"code": ErrorCode.INTERNAL.value, "message": type(error).__name__}}, []
    return {"info": info}, [arrays[digest] for digest in specs]


def _restrict(limits: SandboxLimits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if not _PROC.exists():  # macOS has no limit on address space that it keeps
        return
    memory = _address_space_bytes() + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with contextlib.suppress(OSError):  # where writing it is not allowed, the kernel picks its victim by size
        (_PROC / "oom_score_adj").write_text(_WORST_OOM_SCORE)


def _address_space_bytes() -> int:
    return int((_PROC / "statm").read_text().split()[0]) * resource.getpagesize()


def _start_clocks(limits: SandboxLimits) -> None:
    """Both end the process by a signal. The limit on CPU time counts from its start, and in whole seconds."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + limits.cpu_seconds), hard))
    signal.setitimer(signal.ITIMER_REAL, limits.wall_seconds + ORPHAN_SECONDS)


def _read(source: IO[bytes]) -> bytes | None:
    head = source.read(FRAME.size)
    if len(head) < FRAME.size:
        return None
    (length,) = FRAME.unpack(head)
    body = source.read(length)
    return body if len(body) == length else None


def _write(sink: IO[bytes], *frames: bytes) -> None:
    for frame in frames:
        sink.write(FRAME.pack(len(frame)))
        sink.write(frame)
    sink.flush()


if __name__ == "__main__":
    serve(prepare, SandboxLimits(**json.loads(sys.argv[1])))
