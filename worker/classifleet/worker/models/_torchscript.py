"""torch.jit, with exactly its own deprecation warnings kept quiet.

TorchScript is the format that models arrive in; torch 2.15 marks each of these calls as deprecated, and the design
keeps the format behind a backend for that reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from classifleet.config.errors import ModelError

_DEPRECATED: Final = r"`torch\.jit\.\w+` is deprecated"
_BATCHES_CHECKED: Final = (1, 3, 8)
_TRACE_TOLERANCE: Final = 1e-3
_SEED: Final = 0


def load(path: Path, device: torch.device | str = "cpu") -> Any:
    """Load a TorchScript file in evaluation mode.

    Raises:
        ModelError: The file is no TorchScript, or the device refuses it.
    """
    try:
        with _quiet():
            return torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"{path}: is not a TorchScript file that torch can load: {_first_line(error)}") from error


def freeze(module: Any) -> Any:
    """Inline parameters and attributes as constants. The module must be in evaluation mode."""
    with _quiet():
        return torch.jit.freeze(module)


def optimize(module: Any) -> Any:
    """Apply torch's own optimisations to a frozen module."""
    with _quiet():
        return torch.jit.optimize_for_inference(module)


def trace(module: torch.nn.Module, example: torch.Tensor) -> Any:
    """Trace a module and prove that the trace takes any batch size.

    Args:
        module: Takes one tensor whose first dimension is the batch.
        example: An input of the right shape; its values do not matter.

    Raises:
        ModelError: The module cannot be traced, or its trace answers differently for batches of 1, 3 and 8.
    """
    module = module.eval()
    try:
        with _quiet(tracer=True), torch.inference_mode():
            # torch's own check would trace twice on the same batch size; ours below varies it
            traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
            _check_batches(module, traced, example)
    except RuntimeError as error:
        raise ModelError(f"the model cannot be traced for a batch of any size: {_first_line(error)}") from error
    return traced


def save(module: Any, path: Path) -> None:
    """Write a TorchScript file. Its bytes depend on what this process traced before: torch numbers its classes."""
    with _quiet():
        torch.jit.save(module, str(path))


@contextmanager
def _quiet(*, tracer: bool = False) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_DEPRECATED)
        if tracer:  # says that shapes may become constants, which is what _check_batches proves or refutes
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


def _check_batches(module: torch.nn.Module, traced: Any, example: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(_SEED)
    pixels = torch.rand((max(_BATCHES_CHECKED), *example.shape[1:]), generator=generator).to(example)
    wanted = module(pixels)
    if not isinstance(wanted, torch.Tensor):
        raise ModelError(f"the model returns {type(wanted).__name__}, not one tensor; export its logits alone")
    for size in _BATCHES_CHECKED:
        got = traced(pixels[:size])
        if not torch.allclose(got, wanted[:size], atol=_TRACE_TOLERANCE, rtol=_TRACE_TOLERANCE):
            raise ModelError(f"the traced model gives other answers for a batch of {size}; its batch size is fixed")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
