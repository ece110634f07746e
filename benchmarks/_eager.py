"""The raw forward ceiling: a TorchScript file run by torch with its input already on the device.

Run as a program, with the file, the device, the batch and seconds, it prints images a second. On a GPU: fp16,
channels_last, a CUDA graph; on a CPU its twin: fp32, channels_last.
"""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EDGE = 224


def rate(file: Path, device: str, batch: int, seconds: float) -> float:
    """Images a second, found in a process of its own."""
    command = [sys.executable, __file__, str(file), device, str(batch), str(seconds)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(file: str, device: str, batch: int, seconds: float) -> None:
    """Print images a second."""
    import torch

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        cuda = device.startswith("cuda")
        module, dtype = load(file, device)
        pixels = torch.randn(batch, 3, EDGE, EDGE, device=device, dtype=dtype)
        pixels = pixels.to(memory_format=torch.channels_last)
        for _ in range(5):
            module(pixels)
        call = _graph(module, pixels) if cuda else lambda: module(pixels)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            call()
            count += batch
        if cuda:
            torch.cuda.synchronize()
        print(count / (time.perf_counter() - began))


def load(file: str, device: str) -> tuple[Any, torch.dtype]:
    """The model on its device, and in what it computes."""
    import torch

    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    module = torch.jit.load(file, map_location=device).eval().to(dtype)  # type: ignore[no-untyped-call]
    return module.to(memory_format=torch.channels_last), dtype


def _graph(module: Callable[..., object], pixels: object) -> Callable[[], object]:
    """Replays the forward pass; waits for it, so that no more than one is queued."""
    import torch

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(5):
            module(pixels)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        module(pixels)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
