"""Decoding in processes of their own, for images that may kill whoever decodes them.

    decode thread ──request──► child: limits on itself ──► decode ──► pixels ──► decode thread
                  └─ a dead child, or no answer in time: `poison`, and a new child for the next image

A child is a fresh interpreter (no fork: threads, CUDA and secrets stay behind) with an environment of our own. It
keeps crashes, memory and endless loops away from the worker; it is no wall against code that an image smuggles in.
Nothing on the pipes is pickled, and what comes back is checked as if a stranger had sent it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np
import structlog
from numpy.typing import NDArray

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.config.record import ImageInfo
from classifleet.worker.formats import FORMATS
from classifleet.worker.headers import DecodeLimits
from classifleet.worker.models.description import Preprocess
from classifleet.worker.sandbox_child import FRAME, READY, Prepared, SandboxLimits

COMMAND: Final = (sys.executable, "-I", "-B", "-m", "classifleet.worker.sandbox_child")
START_SECONDS: Final = 60.0
"""A child that is not ready by then has not met an image yet: the machine is at fault."""
END_SECONDS: Final = 5.0
REUSES: Final = 1_000
"""Images that one child prepares, at most, where it may prepare more than one."""
MAX_HEADER_BYTES: Final = 64 << 10
PIPE_BYTES: Final = 1 << 20
# One thread for BLAS: each takes address space, of which a child has little. Nothing of the worker's own: it has keys.
ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
_MS_PER_S: Final = 1_000
log = structlog.get_logger(__name__)


class Sandbox:
    """Prepares images in child processes. Called from many threads, each of which has a child to itself meanwhile.

    Only an image that was the first of its child is convicted when the child dies: what a used child dies of, which
    earlier images may have corrupted, is decoded once more in a fresh one. So is one whose child was killed (the
    kernel chooses it first when a container is short of memory) or did not answer in time (the machine may have stood
    still).
    """

    def __init__(self, limits: SandboxLimits | None = None, *, command: Sequence[str] = COMMAND) -> None:
        self._limits = limits or SandboxLimits()
        self._command = (*command, json.dumps(asdict(self._limits)))
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()

    def prepare(
        self, data: bytes, specs: Mapping[str, Preprocess], limits: DecodeLimits, *, alone: bool = False
    ) -> Prepared:
        """Decode and preprocess as `decode.prepare` does.

        Args:
            data: The image.
            specs: The preprocessing of each model, by digest.
            limits: What is refused.
            alone: In a child that has seen no image and will see no other.

        Raises:
            ImageError: Those of `decode`; `poison` if the image killed its child, or took more than its limits allow;
                `internal` if no child could be started.
        """
        request = _Request(data, specs, limits)
        used = None if alone else self._take()
        if used is not None:
            with contextlib.suppress(_Died):
                return self._ask(used, request, keep=True)
            log.warning("a used sandbox died; once more in a fresh one")
        try:
            return self._ask(_Child(self._command), request, keep=not alone)
        except _Died as death:
            if not death.doubtful:
                raise _poison(death) from None
            log.warning("a sandbox died, perhaps of something else; once more in another one", because=str(death))
        try:
            return self._ask(_Child(self._command), request, keep=not alone)
        except _Died as death:
            raise _poison(death) from None

    def close(self) -> None:
        """End the idle children. To be called when no thread prepares any more."""
        while child := self._take():
            child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> _Child | None:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return None

    def _ask(self, child: _Child, request: _Request, *, keep: bool) -> Prepared:
        healthy = False
        try:
            prepared = child.ask(request, self._limits.wall_seconds)
            healthy = True
        except ImageError:
            healthy = True
            raise
        finally:
            if healthy and keep and child.images < REUSES:
                self._idle.put(child)
            else:
                child.close()
        return prepared


class _Died(Exception):
    """The child did not live to answer; the text says what of."""

    doubtful = False
    """Whether that may have come from outside."""


class _Ended(_Died):
    """It was killed, or gave no answer in time."""

    doubtful = True


class _TooLate(_Died):
    """No answer in time."""


def _poison(death: _Died) -> ImageError:
    return ImageError(ErrorCode.POISON, f"The image killed the process that decoded it: {death}.")


@dataclass(frozen=True, slots=True)
class _Request:
    data: bytes
    specs: Mapping[str, Preprocess]
    limits: DecodeLimits

    def frames(self) -> bytes:
        specs = {digest: spec.model_dump_json() for digest, spec in self.specs.items()}
        header = json.dumps({"specs": specs, "limits": asdict(self.limits)}).encode()
        return b"".join((FRAME.pack(len(header)), header, FRAME.pack(len(self.data)), self.data))

    def info(self, found: Any) -> ImageInfo:
        """The child's account of the image, as far as it can be believed.

        Raises:
            _Died: It cannot.
        """
        match found:
            case {"width": int(width), "height": int(height), "format": str(kind)} if kind in FORMATS:
                digest = hashlib.sha256(self.data).hexdigest()
                info = ImageInfo(width=width, height=height, format=kind, bytes=len(self.data), sha256=digest)
            case _:
                raise _Died("its answer made no sense")
        if found.get("truncated") is True:
            info["truncated"] = True
        return info


class _Child:
    """A running `sandbox_child`. Its pipes do not block, so that every wait has an end."""

    def __init__(self, command: Sequence[str]) -> None:
        self.images = 0
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders write what hostile files make them write
            env=ENVIRONMENT,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101, PT018 - PIPE
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        for pipe in (self._stdin, self._stdout):
            os.set_blocking(pipe.fileno(), False)
        try:
            self._receive_frame(len(READY), time.monotonic() + START_SECONDS)
        except _Died as death:
            self.close()
            raise ImageError(ErrorCode.INTERNAL, f"no process to decode in: {death}") from None

    def ask(self, request: _Request, seconds: float) -> Prepared:
        """The answer, or the child's `ImageError`, or `_Died`: then it is to be closed."""
        self.images += 1
        deadline = time.monotonic() + seconds
        try:
            self._send(request.frames(), deadline)
            answer = json.loads(self._receive_frame(MAX_HEADER_BYTES, deadline))
            match answer:
                case {"error": {"code": str(code), "message": str(message)}}:
                    raise ImageError(ErrorCode(code), message)
                case {"died": str(reason)}:
                    raise _Died(reason)
            info = request.info(answer["info"])
            return info, {digest: self._receive_pixels(spec, deadline) for digest, spec in request.specs.items()}
        except _TooLate:
            raise _Ended(f"it took more than {seconds:g} s") from None
        except (ValueError, KeyError, TypeError):
            raise _Died("its answer made no sense") from None

    def close(self) -> None:
        """Kill it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):  # what was not sent cannot be sent any more
                pipe.close()

    def _receive_pixels(self, spec: Preprocess, deadline: float) -> NDArray[np.uint8]:
        rows, columns = spec.output_size
        frame = self._receive_frame(rows * columns * 3, deadline)
        return np.frombuffer(frame, np.uint8).reshape(rows, columns, 3)

    def _receive_frame(self, most_bytes: int, deadline: float) -> bytes:
        (length,) = FRAME.unpack(self._receive(FRAME.size, deadline))
        if length > most_bytes:
            raise _Died("its answer made no sense")
        return self._receive(length, deadline)

    def _send(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._stdin.fileno(), select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._stdin.fileno(), rest[:PIPE_BYTES]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._death() from None

    def _receive(self, length: int, deadline: float) -> bytes:
        received = bytearray()
        while len(received) < length:
            self._wait(self._stdout.fileno(), select.POLLIN, deadline)
            part = os.read(self._stdout.fileno(), min(PIPE_BYTES, length - len(received)))
            if not part:
                raise self._death()
            received += part
        return bytes(received)

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0, math.ceil((deadline - time.monotonic()) * _MS_PER_S))):
            raise _TooLate("it did not answer in time")

    def _death(self) -> _Died:
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return _Died("it closed its pipes")
        if status == -signal.SIGXCPU:
            return _Died("it took more time of a core than it is given")
        if status == -signal.SIGKILL:
            return _Ended("SIGKILL")
        return _Died(signal.Signals(-status).name if status < 0 else f"exit status {status}")
