"""AOTInductor: the model compiled to native code ahead of time, on CPUs and GPUs, by torch and a compiler alone.

    kept package? ── no ──► child process compiles (20-60 s) ──► kept, named by its SHA-256
          └── yes: checked ──► loaded in a second; no compiler is needed

EfficientNet-Lite0 on 2 cores: 1.4 times torch's best executor in fp32, 1.6 times in bf16; OpenVINO is 1.3-1.6 times as
fast as that. Not run on a GPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from classifleet.config.errors import ModelError
from classifleet.worker.cores import usable_cores
from classifleet.worker.models import _torchscript, backend
from classifleet.worker.models._packages import Packages, package_name
from classifleet.worker.models.backend import activate, check_batch, check_scores
from classifleet.worker.models.description import ModelDescription
from classifleet.worker.models.failures import raise_typed

COMMAND: Final = (sys.executable, "-I", "-W", "ignore", "-m", "classifleet.worker.models._inductor_child")
BASE_SECONDS: Final = 18.0
"""Start of the child, and its compilers: finding out what the CPU can do, the wrapper, linking."""
OPERATOR_SECONDS: Final = 0.1
"""For each operator of the model: about 33 s in all for 140 of them on 2 cores, 40-75 s on busy ones."""
LOAD_SECONDS: Final = 2.0
"""What a kept package takes instead."""
MAX_COMPILE_SECONDS: Final = 600.0
_COMPILE_THREADS: Final = "1"  # more of them are processes that stay until the child ends


def missing(device: str) -> str:
    """Why nothing can be compiled here; empty if it can. A kept package loads all the same."""
    try:
        from torch._C._aoti import AOTIModelPackageLoader  # noqa: F401
        from torch._export.converter import TS2EPConverter  # noqa: F401
    except ImportError as error:
        return f"torch {torch.__version__} lacks {error.name or 'its converter'}"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"no C++ compiler: {compiler} is not on PATH (apt install g++, or set CXX)"
    if device.startswith("cuda") and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return ""


def native_bf16() -> bool:
    """Whether this CPU computes in bf16; elsewhere it would be emulated, and slower."""
    asks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask() for ask in asks if ask)


def estimate_seconds(path: Path) -> float:
    """How long compiling a TorchScript file takes: an honest guess from the number of its operators."""
    nodes = _torchscript.load(path).inlined_graph.nodes()
    operators = [node for node in nodes if node.kind().startswith("aten::")]
    return BASE_SECONDS + OPERATOR_SECONDS * len(operators)


class InductorBackend:
    """A TorchScript module compiled by AOTInductor; see `Backend`.

    Args:
        description: The model's description.
        path: Its `model.pt`, already verified.
        device: `cpu`, `cuda` or `cuda:1`.
        precision: `fp32`, or `bf16` for the arithmetic inside.
        threads: CPU threads of a forward pass; default: the cores that the process may use.
        packages: Where the compiled package is looked for and kept.
        seconds: For compiling, at most.

    Raises:
        ModelError: It cannot be compiled, or not in this time.
    """

    def __init__(
        self,
        description: ModelDescription,
        path: Path,
        device: str = "cpu",
        *,
        precision: str,
        threads: int | None = None,
        packages: Packages | None = None,
        seconds: float = MAX_COMPILE_SECONDS,
    ) -> None:
        self.description = description
        self.name = f"inductor/{precision}"
        self._device = torch.device(device)
        self._threads = threads or usable_cores()
        packages = packages or Packages()
        name = package_name(description, device, precision)
        with tempfile.TemporaryDirectory(prefix="classifleet-inductor-") as folder:
            package = Path(folder) / "model.pt2"
            if not packages.fetch(name, package):
                if reason := missing(device):
                    raise ModelError(f"{description.key}: cannot be compiled: {reason}")
                _compile(description, path, device, precision, package, seconds)
                packages.keep(name, package)
            self._runner: Any = self._loaded(package, device)

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        if self._runner is None:
            raise ModelError(f"{self.description.key}: the backend is closed")
        check_batch(self.description, batch)
        if torch.get_num_threads() != self._threads:  # process-wide, and another model may want more of them
            torch.set_num_threads(self._threads)
        pixels = torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(self._device)
        try:
            with torch.inference_mode():
                raw = self._runner.run([pixels])[0]
                self._check(raw, len(batch))
                scores = activate(raw.float(), self.description.output).cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            raise_typed(error)
            raise
        return check_scores(self.description, scores)

    def warm(self, batch_sizes: Iterable[int]) -> None:
        """See `Backend.warm`."""
        backend.warm(self, self.description, batch_sizes)

    def close(self) -> None:
        """See `Backend.close`."""
        self._runner = None

    def _check(self, raw: torch.Tensor, size: int) -> None:
        wanted = (size, self.description.output.num_classes)
        if raw.shape != wanted:
            raise ModelError(f"{self.description.key}: the output is {list(raw.shape)}; described is {list(wanted)}")

    def _loaded(self, package: Path, device: str) -> Any:
        # torch's own wrapper (torch._inductor) does the same after importing the compiler: 1 s and 150 MB
        from torch._C._aoti import AOTIModelPackageLoader

        index = int(device.partition(":")[2] or -1)
        try:
            return AOTIModelPackageLoader(str(package), "model", False, 1, index)
        except (RuntimeError, TypeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(f"{self.description.key}: the compiled package cannot be loaded: {reason}") from error


def _compile(
    description: ModelDescription, path: Path, device: str, precision: str, package: Path, seconds: float
) -> None:
    """Compile in a child process, which is killed with its compilers when the time is over."""
    asked = {
        "model": str(path),
        "description": description.model_dump(mode="json"),
        "precision": precision,
        "device": device,
        "package": str(package),
        "seconds": seconds,
    }
    child = subprocess.Popen(
        [*COMMAND, json.dumps(asked)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_environment(package.parent),
        text=True,
        errors="replace",
        start_new_session=True,  # so that its compilers can be killed with it
    )
    try:
        _, said = child.communicate(timeout=max(seconds, 0.0))
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{description.key}: compiling took longer than {seconds:.0f} s") from error
    finally:
        _end(child)
    if child.returncode:
        reason = (said.strip().splitlines() or ["no reason given"])[-1]
        raise ModelError(f"{description.key}: cannot be compiled: {reason}")


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of ours, which has keys; caches where they end with the folder."""
    passed = ("PATH", "HOME", "CXX", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "TORCHINDUCTOR_CPP_MARCH")
    return {name: os.environ[name] for name in passed if name in os.environ} | {
        "TMPDIR": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_COMPILE_THREADS": _COMPILE_THREADS,
        "LC_ALL": "C.UTF-8",
    }


def _end(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # its session outlives it if one of its compilers hangs
    child.wait()
    if child.stderr:
        child.stderr.close()
