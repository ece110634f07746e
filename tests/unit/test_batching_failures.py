"""What errors of a forward pass mean. The texts are those of torch 1.13 to 2.15, of CUDA, and of other runtimes."""

from __future__ import annotations

import numpy as np
import pytest

from classifleet.config import ModelError
from classifleet.worker.models.failures import DeviceLost, Failure, NotFinite, OutOfMemory, brief, failure, raise_typed

ASYNC = "\nCUDA kernel errors might be asynchronously reported at some other API call, …"
INTERPRETER = (
    "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript, …:\n  File …\n"
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4"
)


class OutOfMemoryError(RuntimeError):
    """As torch's, whatever it says."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("CUDA error: device-side assert triggered"), "model"),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), "model"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), "model"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling …"), "model"),  # told by the next call
        (RuntimeError("I remember a CUDA workshop where the device was found"), "model"),
        (ModelError("pets@1: the output is [2]"), "model"),
        (NotFinite("pets@1", np.zeros((1, 1), np.float32)), "model"),
        (OutOfMemory("so large"), "memory"),
        (MemoryError(), "memory"),
        (OutOfMemoryError("Tried to allocate 20.00 MiB"), "memory"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 79.11 GiB total capacity; …)"),
            "memory",
        ),
        (RuntimeError("CUDA error: out of memory" + ASYNC), "memory"),
        (RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB."), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "memory"),
        (RuntimeError(CPU), "memory"),
        (RuntimeError("std::bad_alloc"), "memory"),
        (RuntimeError(INTERPRETER + "RuntimeError: " + CPU), "memory"),
        (DeviceLost("gone"), "lost"),
        (RuntimeError("CUDA error: device-side assert triggered" + ASYNC), "lost"),
        (RuntimeError("CUDA error: an illegal memory access was encountered" + ASYNC), "lost"),
        (RuntimeError("CUDA error: unspecified launch failure"), "lost"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "lost"),
        (RuntimeError("CUDA error: uncorrectable NVLink error detected during the execution"), "lost"),
        (RuntimeError("CUDA error: misaligned address"), "lost"),
        (RuntimeError("CUDA error: the launch timed out and was terminated"), "lost"),
        (RuntimeError("CUDA error: unknown error"), "lost"),
        (RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"), "lost"),
        (RuntimeError("CUDA driver error: CUDA_ERROR_ILLEGAL_ADDRESS"), "lost"),
        (RuntimeError("level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)"), "lost"),
        (RuntimeError(INTERPRETER + "RuntimeError: CUDA error: device-side assert triggered" + ASYNC), "lost"),
    ],
)
def test_what_an_error_means(error: Exception, expected: Failure) -> None:
    assert failure(error) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: misaligned address" + ASYNC), "RuntimeError: CUDA error: misaligned address"),
        (RuntimeError(INTERPRETER + "RuntimeError: too deep\nand more"), "RuntimeError: too deep"),
        (RuntimeError(INTERPRETER + "RuntimeError: AssertionError: deep\n"), "RuntimeError: AssertionError: deep"),
        (RuntimeError(INTERPRETER + "builtins.ValueError: too deep\nand more"), "ValueError: too deep"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_error_in_one_line(error: Exception, expected: str) -> None:
    assert brief(error) == expected


def test_torchs_errors_as_ours() -> None:
    with pytest.raises(DeviceLost, match="unspecified launch failure"):
        raise_typed(RuntimeError("CUDA error: unspecified launch failure"))
    with pytest.raises(OutOfMemory, match="MemoryError"):
        raise_typed(MemoryError())
    raise_typed(RuntimeError("anything else"))


def test_torchs_own_out_of_memory() -> None:
    torch = pytest.importorskip("torch")
    assert failure(torch.OutOfMemoryError("any text")) == "memory"
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert failure(caught.value) == "memory"
