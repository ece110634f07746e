"""The process that `_inductor` starts to compile one model: it may take a minute, a gigabyte, or a compiler's crash.

    model.pt ─► ExportedProgram ─► with normalisation, for uint8 [N, h, w, 3] of any N ─► AOTInductor ─► package.pt2

Its only argument is JSON: `model` (path), `description` (fields), `precision`, `device`, `package` (path), `seconds`.
"""

from __future__ import annotations

import json
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, Final

import torch

from classifleet.worker.models import _torchscript
from classifleet.worker.models.description import ModelDescription

_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}
_EXAMPLE_BATCH: Final = 4
_PRECOMPILED: Final = ("aot_inductor.precompile_headers", "cpp_cache_precompile_headers")


class Whole(torch.nn.Module):
    """uint8 [N, h, w, 3] RGB to the model's raw output in float32: what is done to pixels is compiled as well."""

    factor: torch.Tensor
    offset: torch.Tensor

    def __init__(self, inner: torch.nn.Module, description: ModelDescription, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = inner
        self.input = description.input
        self.dtype = dtype
        spec = description.preprocess
        pairs = zip(spec.mean, spec.std, strict=True)
        self.register_buffer("factor", torch.tensor([spec.scale / std for std in spec.std]))
        self.register_buffer("offset", torch.tensor([-mean / std for mean, std in pairs]))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if self.input.color == "BGR":
            pixels = pixels.flip(3)
        if self.input.dtype != "uint8":
            pixels = (pixels.float() * self.factor + self.offset).to(self.dtype)
        output: torch.Tensor = self.inner(pixels.permute(0, 3, 1, 2) if self.input.layout == "NCHW" else pixels)
        return output.float()


def compile_model(path: Path, description: ModelDescription, precision: str, device: str, package: Path) -> None:
    """Compile a TorchScript file into a package.

    Raises:
        Exception: What torch's exporter and compilers raise; they have no common base.
    """
    try:
        # first as constants, among them sizes that some files read from tensors; other files convert only as they are
        _compile(path, description, precision, device, package, freeze=True)
    except Exception:  # noqa: BLE001 - torch's exporter and compilers raise what they like
        _compile(path, description, precision, device, package, freeze=False)


def _compile(
    path: Path, description: ModelDescription, precision: str, device: str, package: Path, *, freeze: bool
) -> None:
    from torch._inductor import aoti_compile_and_package

    exported = _exported(path, description, precision, device, freeze=freeze)
    # threads: as many as the process says when it runs, not as this one has
    configs: dict[str, Any] = {"cpp.dynamic_threads": True}
    if device == "cpu":
        configs["freezing"] = True
    # compiling headers ahead takes as long again, and this process compiles against them once
    configs |= {name: False for name in _PRECOMPILED if _has(name)}
    with torch.no_grad():
        aoti_compile_and_package(exported, package_path=str(package), inductor_configs=configs)


def _has(option: str) -> bool:
    """Whether this torch knows the option; an unknown one is an error."""
    from torch._inductor import config

    found: Any = config
    for part in option.split("."):
        found = getattr(found, part, None)
    return found is not None


def _exported(path: Path, description: ModelDescription, precision: str, device: str, *, freeze: bool) -> Any:
    wanted = description.input
    dtype = torch.bfloat16 if precision == "bf16" else _DTYPES[wanted.dtype]
    batch = min(_EXAMPLE_BATCH, description.batch.max)
    height, width = wanted.size
    shape = (batch, 3, height, width) if wanted.layout == "NCHW" else (batch, height, width, 3)
    # uint8 goes in as it is, whatever the arithmetic inside
    example = torch.zeros(shape, dtype=torch.uint8 if wanted.dtype == "uint8" else dtype, device=device)
    pixels = torch.zeros((batch, height, width, 3), dtype=torch.uint8, device=device)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=description.batch.max)},) if batch > 1 else None
    whole = Whole(_converted(path, example, dtype, freeze=freeze), description, dtype).to(device)
    return torch.export.export(whole, (pixels,), dynamic_shapes=dynamic)


def _converted(path: Path, example: torch.Tensor, dtype: torch.dtype, *, freeze: bool) -> torch.nn.Module:
    from torch._export.converter import TS2EPConverter

    module = _torchscript.load(path, example.device)
    if dtype == torch.bfloat16:
        module = module.to(dtype)
    module = module.to(memory_format=torch.channels_last)
    if freeze:
        module = _torchscript.freeze(module)
    converted: torch.nn.Module = TS2EPConverter(module, (example,)).convert().module()
    return converted


def main() -> None:
    """Compile what the argument says; the last line on stderr says why it failed."""
    asked = json.loads(sys.argv[1])
    signal.alarm(int(asked["seconds"]) + 1)  # also when the worker that waits for it has died
    warnings.simplefilter("ignore")
    description = ModelDescription.from_fields(asked["description"], where=asked["model"])
    try:
        compile_model(Path(asked["model"]), description, asked["precision"], asked["device"], Path(asked["package"]))
    except Exception as error:  # noqa: BLE001 - handed over as text
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        sys.exit(f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}")


if __name__ == "__main__":
    main()
