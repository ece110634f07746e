"""OpenVINO on CPUs: takes the TorchScript module directly, and the uint8 pixels too.

Normalisation, layout and colour order become a part of the compiled graph, in fp32. The module is converted through
OpenVINO's PyTorch frontend itself, because `openvino.convert_model` reports its use to the vendor's analytics; for the
same reason the package's telemetry module is kept from being imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray

from classifleet.config.errors import ModelError
from classifleet.worker.cores import usable_cores
from classifleet.worker.models import _torchscript, backend
from classifleet.worker.models.backend import activate, check_batch, check_scores
from classifleet.worker.models.description import ModelDescription

_TELEMETRY: Final = "openvino_telemetry"
_PRECISIONS: Final = {"fp32": "f32", "bf16": "bf16"}
_importing = threading.Lock()


def installed() -> bool:
    """Whether the extra [openvino] is there."""
    return importlib.util.find_spec("openvino") is not None


def import_openvino() -> Any:
    """The package, without its telemetry."""
    with _importing:
        silenced = _TELEMETRY not in sys.modules
        if silenced:
            sys.modules[_TELEMETRY] = cast(ModuleType, None)  # its import fails, and a stub is used
        try:
            importlib.import_module("openvino.frontend.pytorch.ts_decoder")
            openvino = importlib.import_module("openvino")
        finally:
            if silenced:
                del sys.modules[_TELEMETRY]
        return openvino


def native_bf16() -> bool:
    """Whether this CPU computes in bf16; elsewhere it would be emulated, and slower."""
    if not installed():
        return False
    openvino = import_openvino()
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoBackend:
    """A TorchScript module compiled by OpenVINO; see `Backend`.

    Args:
        description: The model's description.
        path: Its `model.pt`, already verified.
        precision: `fp32`, or `bf16` for the arithmetic inside.
        threads: CPU threads; default: the cores that the process may use.

    Raises:
        ModelError: The module has an operation that OpenVINO cannot convert.
    """

    def __init__(
        self, description: ModelDescription, path: Path, *, precision: str = "fp32", threads: int | None = None
    ) -> None:
        self.description = description
        self.name = f"openvino/{precision}"
        openvino = import_openvino()
        try:
            model = _converted(openvino, description, path)
            hints = {
                "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
                "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
                "INFERENCE_NUM_THREADS": threads or usable_cores(),
            }
            self._request: Any = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()
        except Exception as error:  # its errors have no common base; the model can run in another way
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"{description.key}: OpenVINO cannot run it: {reason}") from error

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        if self._request is None:
            raise ModelError(f"{self.description.key}: the backend is closed")
        check_batch(self.description, batch)
        raw = self._request.infer({0: np.ascontiguousarray(batch)})[0]
        wanted = (len(batch), self.description.output.num_classes)
        if raw.shape != wanted:
            raise ModelError(f"{self.description.key}: the output is {list(raw.shape)}; described is {list(wanted)}")
        # copied, because the next batch is written where this one lies
        scores = activate(torch.from_numpy(np.array(raw, np.float32)), self.description.output).numpy()
        return check_scores(self.description, scores)

    def warm(self, batch_sizes: Iterable[int]) -> None:
        """See `Backend.warm`."""
        backend.warm(self, self.description, batch_sizes)

    def close(self) -> None:
        """See `Backend.close`."""
        self._request = None


def _converted(openvino: Any, description: ModelDescription, path: Path) -> Any:
    """An OpenVINO model that takes uint8 [N, h, w, 3] in RGB."""
    spec, wanted = description.preprocess, description.input
    height, width = wanted.size
    shape = (-1, 3, height, width) if wanted.layout == "NCHW" else (-1, height, width, 3)
    example = torch.zeros([abs(edge) for edge in shape], dtype=getattr(torch, wanted.dtype))
    decoder = openvino.frontend.pytorch.ts_decoder.TorchScriptPythonDecoder(
        _torchscript.load(path), example_input=example
    )
    frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape({0: openvino.PartialShape(list(shape))})
    steps = openvino.preprocess.PrePostProcessor(model)
    pixels = steps.input()
    tensor = pixels.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    tensor.set_shape(openvino.PartialShape([-1, height, width, 3]))
    pixels.model().set_layout(openvino.Layout(wanted.layout))
    chain = pixels.preprocess()
    if wanted.color == "BGR":
        chain.reverse_channels()
    if wanted.dtype != "uint8":
        chain.convert_element_type(openvino.Type.f32)
        # (pixel * scale - mean) / std as (pixel - mean / scale) / (std / scale)
        chain.mean([mean / spec.scale for mean in spec.mean]).scale([std / spec.scale for std in spec.std])
        if wanted.dtype == "float16":
            chain.convert_element_type(openvino.Type.f16)
    return steps.build()
