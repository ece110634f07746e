"""What it means that a forward pass raised: is it the batch, is it memory, or is the device gone?

A backend that knows raises `OutOfMemory` or `DeviceLost`; of others the type and the text are read. Torch raises plain
`RuntimeError`s for most of it, in every version with the names of CUDA's own errors in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from classifleet.config.errors import ModelError

Failure = Literal["model", "memory", "lost"]

_INTERPRETER: Final = "The following operation failed in the TorchScript interpreter"
_RAISED: Final = re.compile(r"^(?:builtins\.)?(\w[\w.]*(?:Error|Exception): .*)", re.MULTILINE)
_MEMORY_TYPES: Final = frozenset({"OutOfMemoryError", "MemoryError", "_ArrayMemoryError"})
_MEMORY: Final = re.compile(
    r"(CUDA|HIP|XPU)( error:)? out of memory"
    r"|_STATUS_ALLOC_FAILED|CUDA_ERROR_OUT_OF_MEMORY|OUT_OF_DEVICE_MEMORY"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory|not enough memory: you tried to allocate"
    r"|std::bad_alloc"
)
_LOST: Final = re.compile(
    r"(CUDA|HIP) error: ("
    r"device-side assert triggered|an illegal memory access|an illegal instruction|unspecified launch failure"
    r"|misaligned address|invalid program counter|hardware stack error|operation not supported on global/shared"
    r"|uncorrectable (ECC|NVLink) error|the launch timed out|unknown error|initialization error"
    r"|no CUDA-capable device|all CUDA-capable devices are busy|device .*(lost|unavailable|removed)"
    r"|driver shutting down|context is destroyed|Graphics Exception"
    r")"
    r"|CUDA_ERROR_(ASSERT|ILLEGAL_ADDRESS|ILLEGAL_INSTRUCTION|LAUNCH_FAILED|MISALIGNED_ADDRESS|INVALID_PC"
    r"|HARDWARE_STACK_ERROR|ECC_UNCORRECTABLE|LAUNCH_TIMEOUT|NO_DEVICE|DEVICE_UNAVAILABLE|CONTEXT_IS_DESTROYED)"
    r"|\bdevice (was |is |has been )?lost\b|DEVICE_LOST|fallen off the bus",
    re.IGNORECASE,
)


class OutOfMemory(ModelError):
    """The device has no memory for so large a batch."""


class DeviceLost(ModelError):
    """The device answers nothing any more until the process starts anew."""


class NotFinite(ModelError):
    """Some rows of the output hold NaN or infinity; the others are in `scores`, and good."""

    def __init__(self, message: str, scores: NDArray[np.float32]) -> None:
        super().__init__(message)
        self.scores = scores


def failure(error: BaseException) -> Failure:
    """What a forward pass that raised this tells.

    `memory`: a smaller batch may run. `lost`: nothing runs in this process any more; after such an error every later
    call of CUDA fails, whatever it is given. `model`: anything else, as a rule the fault of the batch or of the model.
    """
    if isinstance(error, DeviceLost):
        return "lost"
    if isinstance(error, (OutOfMemory, MemoryError)) or type(error).__name__ in _MEMORY_TYPES:
        return "memory"
    if not isinstance(error, RuntimeError):
        return "model"
    text = str(error)
    if _LOST.search(text):
        return "lost"
    return "memory" if _MEMORY.search(text) else "model"


def raise_typed(error: RuntimeError | MemoryError) -> None:
    """Raise what torch raised as the typed error that it is; return if it is none.

    Raises:
        OutOfMemory, DeviceLost: With one line of its text.
    """
    match failure(error):
        case "memory":
            raise OutOfMemory(brief(error)) from error
        case "lost":
            raise DeviceLost(brief(error)) from error


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raise what torch raises within as the typed error that it is, if it is one; see `raise_typed`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise_typed(error)
        raise


def brief(error: BaseException) -> str:
    """An error's type and its first line; torch's go on for pages, and TorchScript's begin with a traceback."""
    lines = str(error).strip().splitlines()
    if lines and lines[0].startswith(_INTERPRETER):
        raised = _RAISED.search(str(error))
        return raised[1] if raised else lines[0]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
