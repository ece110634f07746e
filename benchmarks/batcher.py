"""What the micro-batcher costs an image, and what padding its batches would cost or bring.

    .venv/bin/python benchmarks/batcher.py [--model imagenet] [--variant torchscript/channels_last …] [--rounds 40]

First the CPU of this process from `Device.infer` to its answer, batches of 32 of a model that does nothing, less what
the same tasks cost without it. Then, for each variant, batches of random sizes up to 16, each as it is and padded to
the next power of two, one after the other: milliseconds an image, and what the first batch of a size takes, as a
multiple of the next one. Backends that gain from padding say so with `fixed_shapes`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import statistics
import time
from typing import Any, Final

import numpy as np
import structlog

from classifleet.config import Settings
from classifleet.worker.device import Device, ModelSlot
from classifleet.worker.models import open_repository
from classifleet.worker.models.backend import Backend
from classifleet.worker.models.variants import load_backend

BATCH: Final = 32
BUCKETS: Final = (1, 2, 4, 8, 16)
VARIANTS: Final = ("torchscript", "torchscript/channels_last", "torchscript/bf16", "openvino/fp32", "openvino/bf16")


def main() -> None:
    """Print the cost, and a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="imagenet")
    parser.add_argument("--variant", nargs="*", default=VARIANTS)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    print(f"from infer to the answer: {infer_micros():.1f} µs of CPU an image")
    settings = Settings.load()
    repository = open_repository(settings.model_repository, settings)
    size = repository.describe(repository.resolve(arguments.model)).input.size
    pixels = np.random.default_rng(0).integers(0, 256, (BUCKETS[-1], *size, 3), np.uint8)
    for name in arguments.variant:
        backend = load_backend(repository, arguments.model, device="cpu", variant=name)
        backend.warm(BUCKETS)
        print(f"{name:28} {padding(backend, pixels, arguments.rounds)}", flush=True)
        backend.close()


class _Nothing:
    name = "nothing"

    def run(self, batch: Any) -> Any:
        return np.zeros((len(batch), 10), np.float32)

    def warm(self, batch_sizes: Any) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to free."""


def infer_micros(rounds: int = 300) -> float:
    """CPU microseconds an image; the least of seven runs, for whatever else runs only adds."""
    device = Device()
    device.start()
    device.load("nothing", lambda: ModelSlot(_Nothing(), BATCH))
    pixels = np.zeros((32, 32, 3), np.uint8)

    async def infer() -> None:
        await device.infer("nothing", pixels, "bulk", time.monotonic() + 600)

    async def nothing() -> None:
        pass

    async def run(one: Any) -> None:
        for _ in range(rounds):
            async with asyncio.TaskGroup() as group:
                for _ in range(BATCH):
                    group.create_task(one())

    def cost(one: Any) -> float:
        start = time.process_time()
        asyncio.run(run(one))
        return time.process_time() - start

    best = min(cost(infer) for _ in range(7)) - min(cost(nothing) for _ in range(7))
    device.close()
    return best / rounds / BATCH * 1e6


def padding(backend: Backend, pixels: Any, rounds: int) -> str:
    """A variant's line."""
    seen: dict[int, list[float]] = {}
    as_is = padded = 0.0
    sizes = random.Random(1).choices(range(1, BUCKETS[-1] + 1), k=rounds)
    for size in sizes:
        seconds = timed(backend, pixels[:size])
        seen.setdefault(size, []).append(seconds)
        as_is += seconds
        padded += timed(backend, pixels[: next(bucket for bucket in BUCKETS if bucket >= size)])
    new = [times[0] / times[1] for size, times in seen.items() if len(times) > 1 and size not in BUCKETS]
    alone, filled = (seconds / sum(sizes) * 1e3 for seconds in (as_is, padded))
    return (
        f"as they are {alone:6.2f} ms, padded {filled:6.2f} ms ({padded / as_is:.2f} x); "
        f"a new size at first {statistics.median(new):.2f} x"
    )


def timed(backend: Backend, batch: Any) -> float:
    """Seconds of a forward pass."""
    start = time.perf_counter()
    backend.run(batch)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
