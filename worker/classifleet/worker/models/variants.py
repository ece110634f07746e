"""The ways to run a model, by name; `tuning` finds the fastest one that gives the same answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from classifleet.config.errors import ModelError
from classifleet.worker.models import _openvino
from classifleet.worker.models._torch import Recipe, TorchScriptBackend
from classifleet.worker.models.backend import Backend
from classifleet.worker.models.description import ModelDescription
from classifleet.worker.models.parity import Precision
from classifleet.worker.models.repository import ModelNotFound, Repository


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a model.

    Attributes:
        name: `torchscript/bf16`, as in logs and metrics.
        precision: Of the arithmetic inside.
        devices: `cpu`, `cuda`, or both.
        recipe: How torch's executor runs it; None for OpenVINO.
        extra: The extra of classifleet that it needs beyond [worker].
    """

    name: str
    precision: Precision
    devices: tuple[str, ...]
    recipe: Recipe | None = None
    extra: str | None = None


PLAIN: Final = Variant("torchscript", "fp32", ("cpu", "cuda"), Recipe())
VARIANTS: Final = (
    PLAIN,
    Variant("torchscript/frozen", "fp32", ("cpu", "cuda"), Recipe(freeze=True)),
    Variant("torchscript/channels_last", "fp32", ("cpu",), Recipe(freeze=True, channels_last=True)),
    Variant("torchscript/optimized", "fp32", ("cpu",), Recipe(freeze=True, channels_last=True, optimize=True)),
    Variant("torchscript/bf16", "bf16", ("cpu", "cuda"), Recipe(freeze=True, channels_last=True, convert="bf16")),
    Variant("torchscript/autocast_bf16", "bf16", ("cpu", "cuda"), Recipe(channels_last=True, autocast="bf16")),
    Variant("torchscript/fp16", "fp16", ("cuda",), Recipe(freeze=True, channels_last=True, convert="fp16")),
    Variant("torchscript/autocast_fp16", "fp16", ("cuda",), Recipe(channels_last=True, autocast="fp16")),
    Variant("openvino/fp32", "fp32", ("cpu",), extra="openvino"),
    Variant("openvino/bf16", "bf16", ("cpu",), extra="openvino"),
)
BY_NAME: Final = {variant.name: variant for variant in VARIANTS}


def available(variant: Variant, device: str) -> str:
    """Why a variant cannot be tried on a device (`cpu`, `cuda`, `cuda:1`); empty if it can."""
    if device.partition(":")[0] not in variant.devices:
        return f"not for {device}"
    if variant.extra == "openvino" and not _openvino.installed():
        return "pip install 'classifleet[openvino]'"
    if variant.name == "openvino/bf16" and not _openvino.native_bf16():
        return "this CPU has no bf16"
    return ""


def open_variant(
    variant: Variant, description: ModelDescription, path: Path, *, device: str, threads: int | None = None
) -> Backend:
    """Load a model to run in this way.

    Raises:
        ModelError: It cannot.
    """
    if missing := available(variant, device):
        raise ModelError(f"{description.key}: {variant.name} cannot be used here: {missing}")
    if variant.recipe is None:
        return _openvino.OpenVinoBackend(description, path, precision=variant.precision, threads=threads)
    return TorchScriptBackend(description, path, device, threads, recipe=variant.recipe, name=variant.name)


def load_backend(
    repository: Repository,
    reference: str,
    *,
    device: str = "auto",
    threads: int | None = None,
    variant: str | None = None,
) -> Backend:
    """Verify a model and load it onto a device.

    Args:
        repository: Where it lives.
        reference: `imagenet` (the highest version) or `imagenet@1`.
        device: `auto` (the GPU if there is one), `cpu`, `cuda` or `cuda:1`.
        threads: CPU threads of a forward pass; default: the cores that the process may use.
        variant: A name of `VARIANTS`. Default: TorchScript, frozen if that gives the same answers.

    Raises:
        ModelNotFound: There is no such model, or no such variant.
        ModelError: Its files are damaged, or it does not run as described.
    """
    key = repository.resolve(reference)
    description, path = repository.describe(key), repository.model_file(key)
    if variant is None:
        return TorchScriptBackend(description, path, device, threads)
    if variant not in BY_NAME:
        raise ModelNotFound(f"there is no variant {variant!r}; there are: {', '.join(BY_NAME)}")
    return open_variant(BY_NAME[variant], description, path, device=device, threads=threads)
