"""How the cores of a CPU are shared between decoding and the forward pass: predicted, then measured, both at once.

    rate of one decoding thread ┐
    rate of a forward pass by threads ┴─► predicted() ─► the most promising splits ─► each runs as a pipeline ─► best()
    the best one with larger batches ─────────────────────────────────────────────────────────┘

A batch that is as fast as a larger one alone is not beside decoding: each of its barriers waits for a core.
EfficientNet-Lite0 in torch's bf16, best alone in fours, did 75 images/s in a worker in fours, 90 in eights.

All threads together may outnumber the cores: decoding and forward passes take turns anyway. A forward pass on fewer
threads wastes less at its barriers, and on more is over sooner; which wins depends on the model, so it is measured.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from classifleet.worker.decode import decode
from classifleet.worker.models.backend import Backend
from classifleet.worker.models.description import ModelDescription, Preprocess
from classifleet.worker.models.golden_inputs import noise
from classifleet.worker.models.measuring import Clock, enough
from classifleet.worker.models.tuning import Split
from classifleet.worker.preprocess import preprocess

RUN_SECONDS: Final = 0.6
"""Of one pipeline; each runs `ROUNDS` times, in turns with the others, and its best run counts."""
START_SECONDS: Final = 0.1
ROUNDS: Final = 2
MEASURED: Final = 4
"""How many splits are measured, of those with the best prediction."""
CLEAR: Final = 1.1
"""A split whose forward pass has fewer threads, which a lonely image waits for, must be so many times as fast: the
rate of a pipeline repeats within 5 % on a quiet machine."""
QUEUED_BATCHES: Final = 4


class OpenWith(Protocol):
    """Loads the model with so many CPU threads."""

    def __call__(self, *, threads: int) -> Backend:
        """Load it, or raise ModelError."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a pipeline does: samples are decoded, and classified in batches.

    `batches` are the sizes to try, rising; the first is the best one alone.
    """

    samples: Sequence[bytes]
    description: ModelDescription
    batches: Sequence[int]


def measure_splits(
    work: Work, open_with: OpenWith, cores: int, *, seconds: float, clock: Clock = time.monotonic
) -> tuple[Split, ...]:
    """Measure the most promising splits; none if there is nothing to choose, or no time.

    Raises:
        ModelError: The model does not run with so many threads.
    """
    ends = clock() + seconds
    if cores < 2 or not work.samples:
        return ()
    first, *larger = work.batches
    measured: dict[tuple[int, int, int], float] = {}
    with ExitStack() as stack:
        backends: dict[int, Backend] = {}
        rates: dict[int, float] = {}
        for threads in forward_threads(cores):
            if clock() >= ends:
                return ()
            backends[threads] = backend = stack.enter_context(closing(open_with(threads=threads)))
            backend.warm([1, first])
            rates[threads] = _forward_rate(backend, work, clock)

        def run(keys: list[tuple[int, int, int]]) -> None:
            for decoders, threads, batch in keys * ROUNDS:
                if clock() + RUN_SECONDS > ends:
                    break
                rate = _pipeline_rate(backends[threads], work, decoders, batch)
                measured[decoders, threads, batch] = max(rate, measured.get((decoders, threads, batch), 0.0))

        run([(*split, first) for split in promising(cores, _decode_rate(work), rates)])
        if chosen := best(_splits(measured)):
            backends[chosen.forward_threads].warm(larger)
            run([(chosen.decode_threads, chosen.forward_threads, batch) for batch in larger])
    return _splits(measured)


def _splits(measured: Mapping[tuple[int, int, int], float]) -> tuple[Split, ...]:
    return tuple(Split(*key, rate) for key, rate in measured.items())


def forward_threads(cores: int) -> list[int]:
    """The numbers of threads to try for a forward pass."""
    return sorted({1, math.ceil(cores / 2), cores}, reverse=True)


def predicted(
    decoders: int, threads: int, *, cores: int, decode_rate: float, forward_rates: Mapping[int, float]
) -> float:
    """Images per second: the slower of the two stages, and no more than the cores can compute.

    Args:
        decoders: Threads that decode.
        threads: Of a forward pass.
        cores: That the process may use.
        decode_rate: Images per second of one thread.
        forward_rates: Images per second of the model, by threads.
    """
    forward = forward_rates[threads]
    core_seconds = 1 / decode_rate + threads / forward
    return min(decoders * decode_rate, forward, cores / core_seconds)


def promising(cores: int, decode_rate: float, forward_rates: Mapping[int, float]) -> list[tuple[int, int]]:
    """(threads that decode, threads of a forward pass) with the best predictions; all cores for each is among them."""
    all_of_both = (cores, cores)
    found = {all_of_both} | {
        (decoders, threads) for threads in forward_rates for decoders in (max(1, cores - threads), cores)
    }

    def value(split: tuple[int, int]) -> tuple[float, int, int]:
        rate = predicted(*split, cores=cores, decode_rate=decode_rate, forward_rates=forward_rates)
        return round(rate, 3), split[1], -split[0]

    ordered = sorted(found, key=value, reverse=True)[:MEASURED]
    return ordered if all_of_both in ordered else [*ordered[:-1], all_of_both]


def best(splits: Iterable[Split]) -> Split | None:
    """The fastest; of those about as fast, the one with the quickest lonely image, then the most threads that decode.

    Those are for photos larger than the samples, which one thread could not decode as fast as they are classified.
    With these threads, the smallest batch that is about as fast as the best.
    """
    splits = sorted(splits, key=lambda split: split.batch)
    first = [split for split in splits if split.batch == splits[0].batch]
    most = max((split.rate for split in first), default=0.0)
    close = [split for split in first if split.rate * CLEAR >= most]
    chosen = max(close, key=_threads, default=None)
    if chosen is None:
        return None
    sizes = {split.batch: split for split in splits if _threads(split) == _threads(chosen)}
    return sizes[enough({batch: split.rate for batch, split in sizes.items()})]


def _threads(split: Split) -> tuple[int, int]:
    return split.forward_threads, split.decode_threads


def _forward_rate(backend: Backend, work: Work, clock: Clock) -> float:
    pixels = noise(work.description, work.batches[0])
    taken = []
    for _ in range(3):
        start = clock()
        backend.run(pixels)
        taken.append(clock() - start)
    return work.batches[0] / max(min(taken), 1e-9)


def _decode_rate(work: Work) -> float:
    """Images per second of one thread, by its own CPU time: whatever else runs does not count."""
    start = time.thread_time()
    for data in work.samples:
        _pixels(data, work.description.preprocess)
    return len(work.samples) / max(time.thread_time() - start, 1e-9)


def _pipeline_rate(backend: Backend, work: Work, decoders: int, batch: int) -> float:
    """Images per second of decoding threads and of forward passes on this thread, as a worker has them."""
    with _decoding(work, decoders, QUEUED_BATCHES * batch) as ready:
        _classify(backend, batch, ready, START_SECONDS)
        return _classify(backend, batch, ready, RUN_SECONDS)


def _classify(backend: Backend, most: int, ready: queue.Queue[NDArray[np.uint8]], seconds: float) -> float:
    done, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        batch = [ready.get()]
        with suppress(queue.Empty):  # work-conserving: what is ready runs at once
            while len(batch) < most:
                batch.append(ready.get_nowait())
        backend.run(np.stack(batch))
        done += len(batch)
    return done / (time.monotonic() - start)


@contextmanager
def _decoding(work: Work, decoders: int, ahead: int) -> Iterator[queue.Queue[NDArray[np.uint8]]]:
    ready: queue.Queue[NDArray[np.uint8]] = queue.Queue(ahead)
    ended = threading.Event()
    threads = [
        threading.Thread(target=_decode_until, args=(ended, ready, work, first), name="classifleet-split")
        for first in range(decoders)
    ]
    for thread in threads:
        thread.start()
    try:
        yield ready
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _decode_until(ended: threading.Event, ready: queue.Queue[NDArray[np.uint8]], work: Work, first: int) -> None:
    turn = first
    while not ended.is_set():
        pixels = _pixels(work.samples[turn % len(work.samples)], work.description.preprocess)
        turn += 1
        while not ended.is_set():
            with suppress(queue.Full):
                ready.put(pixels, timeout=START_SECONDS)
                break


def _pixels(data: bytes, spec: Preprocess) -> NDArray[np.uint8]:
    return preprocess(decode(data, targets=(spec,)).picture(spec), spec)
