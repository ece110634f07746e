"""The ways to run a model, by name; `tuning` finds the fastest one that gives the same answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from classifleet.config.errors import ModelError
from classifleet.worker.models import _inductor, _openvino
from classifleet.worker.models._graphs import GraphedBackend, OnDevice
from classifleet.worker.models._packages import Packages, package_name
from classifleet.worker.models._torch import Recipe, TorchScriptBackend
from classifleet.worker.models.backend import Backend
from classifleet.worker.models.description import ModelDescription
from classifleet.worker.models.golden_inputs import few_pictures
from classifleet.worker.models.parity import Precision
from classifleet.worker.models.repository import ModelNotFound, Repository
from classifleet.worker.models.staging import StagedBackend


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a model.

    Attributes:
        name: `torchscript/bf16`, as in logs and metrics.
        precision: Of the arithmetic inside.
        devices: `cpu`, `cuda`, or both.
        recipe: How torch's executor runs it; None for other engines.
        graphs: Whether CUDA graphs are recorded of it, one for each batch size.
    """

    name: str
    precision: Precision
    devices: tuple[str, ...]
    recipe: Recipe | None = None
    graphs: bool = False

    @property
    def engine(self) -> str:
        """`torchscript`, `openvino` or `inductor`."""
        return self.name.partition("/")[0]


_FP16: Final = Recipe(freeze=True, channels_last=True, convert="fp16")
_BF16: Final = Recipe(freeze=True, channels_last=True, convert="bf16")
_AUTOCAST_FP16: Final = Recipe(channels_last=True, autocast="fp16")
_AUTOCAST_BF16: Final = Recipe(channels_last=True, autocast="bf16")
PLAIN: Final = Variant("torchscript", "fp32", ("cpu", "cuda"), Recipe())
VARIANTS: Final = (
    PLAIN,
    Variant("torchscript/frozen", "fp32", ("cpu", "cuda"), Recipe(freeze=True)),
    Variant("torchscript/channels_last", "fp32", ("cpu",), Recipe(freeze=True, channels_last=True)),
    Variant("torchscript/optimized", "fp32", ("cpu",), Recipe(freeze=True, channels_last=True, optimize=True)),
    Variant("torchscript/bf16", "bf16", ("cpu", "cuda"), _BF16),
    Variant("torchscript/autocast_bf16", "bf16", ("cpu", "cuda"), _AUTOCAST_BF16),
    Variant("torchscript/fp16", "fp16", ("cuda",), _FP16),
    Variant("torchscript/autocast_fp16", "fp16", ("cuda",), _AUTOCAST_FP16),
    Variant("torchscript/frozen+graphs", "fp32", ("cuda",), Recipe(freeze=True), graphs=True),
    Variant("torchscript/fp16+graphs", "fp16", ("cuda",), _FP16, graphs=True),
    Variant("torchscript/bf16+graphs", "bf16", ("cuda",), _BF16, graphs=True),  # for what overflows in fp16
    Variant("torchscript/autocast_fp16+graphs", "fp16", ("cuda",), _AUTOCAST_FP16, graphs=True),
    Variant("torchscript/autocast_bf16+graphs", "bf16", ("cuda",), _AUTOCAST_BF16, graphs=True),
    Variant("openvino/fp32", "fp32", ("cpu",)),
    Variant("openvino/bf16", "bf16", ("cpu",)),
    Variant("inductor/fp32", "fp32", ("cpu", "cuda")),
    Variant("inductor/bf16", "bf16", ("cpu", "cuda")),
)
BY_NAME: Final = {variant.name: variant for variant in VARIANTS}


@dataclass(frozen=True, slots=True)
class Ways:
    """The ways to run one model on one device: what can be tried, how long that takes to prepare, and doing it.

    Attributes:
        description: The model's description.
        path: Its `model.pt`, already verified.
        device: `cpu`, `cuda` or `cuda:1`.
        packages: Where compiled packages are kept.
    """

    description: ModelDescription
    path: Path
    device: str
    packages: Packages = field(default_factory=Packages)

    def missing(self, variant: Variant) -> str:
        """Why a variant cannot be tried; empty if it can."""
        reason = available(variant, self.device)
        return "" if reason and self._kept(variant) else reason

    def seconds(self, variant: Variant) -> float:
        """How long preparing it takes, where that is long enough to count."""
        if variant.engine != "inductor":
            return 0.0
        return _inductor.LOAD_SECONDS if self._kept(variant) else _inductor.estimate_seconds(self.path)

    def open(self, variant: Variant, *, threads: int | None = None, seconds: float | None = None) -> Backend:
        """Load the model to run in this way.

        Args:
            variant: Which.
            threads: CPU threads of a forward pass; default: the cores that the process may use.
            seconds: For compiling, at most.

        Raises:
            ModelError: It cannot.
        """
        if missing := self.missing(variant):
            raise ModelError(f"{self.description.key}: {variant.name} cannot be used here: {missing}")
        if variant.engine == "openvino":
            return _openvino.OpenVinoBackend(self.description, self.path, precision=variant.precision, threads=threads)
        if variant.engine == "inductor":
            return _inductor.InductorBackend(
                self.description,
                self.path,
                self.device,
                precision=variant.precision,
                threads=threads,
                packages=self.packages,
                seconds=_inductor.MAX_COMPILE_SECONDS if seconds is None else seconds,
            )
        backend = TorchScriptBackend(
            self.description, self.path, self.device, threads, recipe=variant.recipe, name=variant.name
        )
        return _staged(GraphedBackend(backend, self.description) if variant.graphs else backend, self.description)

    def _kept(self, variant: Variant) -> bool:
        """Whether it is compiled already: then no compiler is needed."""
        if variant.engine != "inductor" or self.device.partition(":")[0] not in variant.devices:
            return False
        return self.packages.has(package_name(self.description, self.device, variant.precision))


def _staged(backend: OnDevice, description: ModelDescription) -> Backend:
    """What a CPU computes lies where it is computed already."""
    return backend if backend.device.type == "cpu" else StagedBackend(backend, description)


def available(variant: Variant, device: str) -> str:
    """Why a variant cannot be tried on a device (`cpu`, `cuda`, `cuda:1`); empty if it can."""
    if device.partition(":")[0] not in variant.devices:
        return f"not for {device}"
    if variant.engine == "openvino" and not _openvino.installed():
        return "pip install 'classifleet[openvino]'"
    if variant.name == "openvino/bf16" and not _openvino.native_bf16():
        return "this CPU has no bf16"
    if variant.name == "inductor/bf16" and device == "cpu" and not _inductor.native_bf16():
        return "this CPU has no bf16"
    return _inductor.missing(device) if variant.engine == "inductor" else ""


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
        pictures = few_pictures(description, repository.folder(key))
        return _staged(TorchScriptBackend(description, path, device, threads, pictures=pictures), description)
    if variant not in BY_NAME:
        raise ModelNotFound(f"there is no variant {variant!r}; there are: {', '.join(BY_NAME)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Ways(description, path, device).open(BY_NAME[variant], threads=threads)
