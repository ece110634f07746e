"""What a device runs next: policy, on a clock of its own."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from classifleet.config import Lane
from classifleet.worker.batching import LEAD_SECONDS, Backlog, Batch, Shares, Sizes, compose, least_served
from classifleet.worker.lanes import BULK_EVERY, LANES
from classifleet.worker.queues import AGEING_SECONDS, Queue, Waiting, due

PIXELS = np.zeros((2, 2, 3), np.uint8)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize(
    ("since", "deadline", "expected"),
    [
        (0, math.inf, AGEING_SECONDS),
        (0, 1, 1),  # in a hurry
        (0, 60, AGEING_SECONDS),  # not in a hurry: served as if there were no deadline
        (10, math.inf, 10 + AGEING_SECONDS),
    ],
)
def test_when_an_image_is_due(since: float, deadline: float, expected: float) -> None:
    assert due(since, deadline) == expected


def queued(loop: asyncio.AbstractEventLoop, *images: tuple[float, float]) -> tuple[Queue, list[Waiting]]:
    """A queue with images of (since, deadline), and what it drops."""
    dropped: list[Waiting] = []
    queue = Queue(dropped.append)
    for since, deadline in images:
        queue.add(Waiting(PIXELS, since, loop.create_future(), deadline))
    return queue, dropped


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([(0, math.inf), (1, math.inf), (2, math.inf)], [0, 1, 2]),
        ([(0, math.inf), (1, 60), (2, 50)], [0, 1, 2]),
        ([(0, math.inf), (1, 3), (2, 2.5)], [2, 1, 0]),  # earliest deadline first
        ([(0, math.inf), (0.1, 3), (0.2, 3), (0.3, 3)], [0.1, 0.2, 0.3, 0]),  # of one chunk, by arrival
        ([(0, math.inf), (4, AGEING_SECONDS + 1)], [0, 4]),  # aged: overtaken by nobody
        ([(0, 4.5), (1, math.inf), (2, 4.2)], [2, 0, 1]),
    ],
)
def test_the_order_of_a_queue(
    loop: asyncio.AbstractEventLoop, images: list[tuple[float, float]], expected: list[float]
) -> None:
    queue, dropped = queued(loop, *images)
    assert queue.first_due(2) is not None
    assert [image.since for image in queue.take(2, 2) + queue.take(9, 2)] == expected
    assert queue.first_due(2) is None
    assert not dropped


def test_what_is_late_or_abandoned_is_dropped(loop: asyncio.AbstractEventLoop) -> None:
    queue, dropped = queued(loop, (0, 5), (1, math.inf), (2, math.inf), (3, 4), (3, 100))
    abandoned = Waiting(PIXELS, 3, loop.create_future())
    queue.add(abandoned)
    abandoned.future.cancel()
    assert [image.since for image in queue.take(1, 4.5)] == [0]
    assert [image.since for image in queue.take(9, 4.5)] == [1, 2, 3]
    assert [(image.since, image.deadline) for image in dropped] == [(3, 4), (3, math.inf)]


@pytest.mark.parametrize("hurry", [0.5, 2.0, AGEING_SECONDS - 0.1])
def test_a_stream_of_images_in_a_hurry_starves_nobody(loop: asyncio.AbstractEventLoop, hurry: float) -> None:
    """One image a tick, and as many come, all with near deadlines; the one without waits no longer than it may."""
    tick, (queue, _) = 0.1, queued(loop, (0, math.inf))
    now = 0.0
    while True:
        queue.add(Waiting(PIXELS, now, loop.create_future(), now + hurry))
        [image] = queue.take(1, now)
        if image.deadline == math.inf:
            break
        now += tick
    assert AGEING_SECONDS - hurry <= now <= AGEING_SECONDS + tick


@pytest.mark.parametrize(
    ("interactive", "sizes", "first", "expected"),
    [
        (1, Sizes(32), "interactive", (1, 7, "lane")),  # bulk tops it up to a quarter
        (12, Sizes(32), "interactive", (12, 0, "lane")),
        (40, Sizes(32), "interactive", (32, 0, "full")),
        (1, Sizes(3), "interactive", (1, 0, "lane")),
        (1, Sizes(32), "bulk", (0, 32, "full")),
        (1, Sizes(50), "bulk", (1, 40, "drained")),
        (1, Sizes(32, halved=True), "bulk", (0, 32, "memory")),
        (9, Sizes(32, (1, 8, 16, 32)), "interactive", (9, 7, "lane")),  # as far as it is padded anyway
        (40, Sizes(32, (1, 32)), "interactive", (32, 0, "full")),
        (1, Sizes(200), "interactive", (1, 40, "drained")),
    ],
)
def test_a_batch_leaves_the_rest_in_order(
    loop: asyncio.AbstractEventLoop, interactive: int, sizes: Sizes, first: Lane, expected: tuple[int, int, str]
) -> None:
    before: dict[Lane, list[float]] = {
        "interactive": [float(n) for n in range(interactive)],
        "bulk": [float(n) for n in range(100, 140)],
    }
    queues = {lane: queued(loop, *((since, math.inf) for since in before[lane]))[0] for lane in LANES}
    batch = compose("m", queues, sizes, first, 0)
    counts: dict[Lane, int] = {"interactive": expected[0], "bulk": expected[1]}
    taken = {lane: before[lane][: counts[lane]] for lane in LANES}
    assert [image.since for image in batch.images] == [
        s for lane in sorted(LANES, key=lambda lane: lane != first) for s in taken[lane]
    ]
    assert (batch.bulk, batch.reason) == (counts["bulk"], expected[2])
    left = {lane: [image.since for image in queues[lane].take(99, 0)] for lane in LANES}
    assert left == {lane: before[lane][counts[lane] :] for lane in LANES}


class GivenUpMeanwhile:
    """A future that its event loop cancels between two looks of the device thread."""

    def __init__(self) -> None:
        self.looks = 0

    def done(self) -> bool:
        self.looks += 1
        return self.looks > 1


def test_an_image_that_is_given_up_while_its_batch_is_made_makes_no_empty_batch(
    loop: asyncio.AbstractEventLoop,
) -> None:
    backlog = Backlog()
    backlog.open("m", Sizes(4))
    gone = Waiting(np.zeros((2, 2, 3), np.uint8), 0.0, GivenUpMeanwhile(), math.inf)  # type: ignore[arg-type]
    backlog.add("m", "interactive", gone)
    assert backlog.next(1.0) is None
    assert [waiting for _, waiting in backlog.dropped()] == [gone]
    backlog.add("m", "bulk", Waiting(np.zeros((2, 2, 3), np.uint8), 0.0, loop.create_future(), math.inf))
    batch = backlog.next(1.0)
    assert batch is not None
    assert len(batch.images) == 1


@pytest.mark.parametrize(
    ("a", "b", "passed_over", "expected"),
    [
        (([], []), ([], []), 0, None),
        (([], [1.0]), ([], [2.0]), 0, ("a", 1)),  # nobody has used anything: whoever came first
        (([], [2.0]), ([], [1.0]), 0, ("b", 1)),
        (([], [1.0]), ([5.0], []), 0, ("b", 0)),  # interactive before bulk, however old that is
        (([3.0], []), ([2.0], []), 0, ("b", 0)),
        (([3.0], []), ([], [1.0]), BULK_EVERY - 1, ("b", 1)),  # but not for ever
        (([3.0], []), ([2.0], []), BULK_EVERY - 1, ("b", 0)),
    ],
)
def test_the_next_batch(
    loop: asyncio.AbstractEventLoop,
    a: tuple[list[float], list[float]],
    b: tuple[list[float], list[float]],
    passed_over: int,
    expected: tuple[str, int] | None,
) -> None:
    backlog = Backlog()
    for model, lanes in (("a", a), ("b", b)):
        backlog.open(model, Sizes(1))
        for lane, images in zip(LANES, lanes, strict=True):
            for since in images:
                backlog.add(model, lane, Waiting(PIXELS, since, loop.create_future()))
    backlog._passed_over = passed_over
    batch = backlog.next(9)
    assert (None if batch is None else (batch.model, batch.bulk)) == expected


@pytest.mark.parametrize(
    ("used", "due", "expected"),
    [
        ({"a": 1.0, "b": 2.0}, {"a": 9.0, "b": 1.0}, "a"),
        ({"a": 1.0, "b": 2.0}, {"b": 1.0}, "b"),
        ({"a": 2.0, "b": 2.0}, {"a": 9.0, "b": 1.0}, "b"),
        ({"a": 2.0, "b": 2.0}, {"a": 1.0, "b": 1.0}, "a"),
    ],
)
def test_who_has_used_the_least(used: Mapping[str, float], due: Mapping[str, float], expected: str) -> None:
    assert least_served(used, due) == expected


def test_nobody_saves_up_and_nobody_is_shut_out() -> None:
    shares, both = Shares(), {"a": 0.0, "b": 0.0}
    for _ in range(100):
        assert shares.pick({"a": 0.0}) == "a"  # a lone model has everything
        shares.charge("a", 1.0)
    turns = []
    for _ in range(6):  # b comes late, and has no claim to the past
        turns.append(shares.pick(both))
        shares.charge(turns[-1], 1.0)
    assert Counter(turns) == {"a": 3, "b": 3}
    shares.charge("a", 1000 * LEAD_SECONDS)  # something hung for once
    seconds = 0.0
    while shares.pick(both) == "b":
        shares.charge("b", 1.0)
        seconds += 1.0
    assert seconds <= LEAD_SECONDS + 2


class Simulation:
    """A device on a virtual clock, whose models take so many seconds for a batch and for each of its images."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int, **seconds: tuple[float, float]) -> None:
        self._loop = loop
        self._seconds = seconds
        self.now = 0.0
        self.used: defaultdict[str, float] = defaultdict(float)
        self.waits: list[tuple[str, float]] = []
        self.backlog = Backlog()
        for model in seconds:
            self.backlog.open(model, Sizes(most))

    def add(self, model: str, lane: Lane, images: int) -> None:
        for _ in range(images):
            self.backlog.add(model, lane, Waiting(PIXELS, self.now, self._loop.create_future()))

    def step(self) -> Batch | None:
        batch = self.backlog.next(self.now)
        if batch is not None:
            self.waits += [(batch.model, self.now - image.since) for image in batch.images]
            batch_seconds, image_seconds = self._seconds[batch.model]
            seconds = batch_seconds + len(batch.images) * image_seconds
            self.now += seconds
            self.used[batch.model] += seconds
            self.backlog.charge(batch, seconds)
        return batch


def test_models_that_wait_share_the_time_not_the_images(loop: asyncio.AbstractEventLoop) -> None:
    device = Simulation(loop, 32, slow=(0.1, 0.1), fast=(0.005, 0.001), other=(0.01, 0.01))
    for model, images in (("slow", 3000), ("fast", 60_000), ("other", 10_000)):
        device.add(model, "bulk", images)
    while device.now < 200:
        device.step()
    shares = {model: seconds / device.now for model, seconds in device.used.items()}
    assert shares == pytest.approx(dict.fromkeys(("slow", "fast", "other"), 1 / 3), abs=0.02)


def test_a_backlog_of_a_slow_model_does_not_hold_up_a_fast_one(loop: asyncio.AbstractEventLoop) -> None:
    device = Simulation(loop, 8, slow=(0, 0.1), fast=(0.001, 0.001))
    device.add("slow", "bulk", 1000)
    while device.now < 60:
        batch = device.step()
        if batch and batch.model == "slow":
            device.add("fast", "bulk", 2)
    assert max(wait for model, wait in device.waits if model == "fast") <= 0.81  # one batch of the slow one
    assert device.used["slow"] > 0.95 * device.now  # which gets all the rest


def test_a_lone_model_has_everything_in_full_batches(loop: asyncio.AbstractEventLoop) -> None:
    device = Simulation(loop, 8, slow=(0, 0.1), fast=(0, 0.001))
    device.add("slow", "bulk", 80)
    while (batch := device.step()) is not None:
        assert (len(batch.images), batch.reason) == (8, "full")
    assert device.used == {"slow": pytest.approx(8)}


def test_interactive_of_one_model_leaves_bulk_turns_to_all_models(loop: asyncio.AbstractEventLoop) -> None:
    """Bulk that tops up interactive batches is no turn of the other model's bulk."""
    device = Simulation(loop, 8, a=(0.01, 0), b=(0.01, 0))
    device.add("a", "bulk", 10_000)
    device.add("b", "bulk", 10_000)
    turns: Counter[str] = Counter()
    for _ in range(800):
        device.add("a", "interactive", 1)
        batch = device.step()
        assert batch is not None
        turns[batch.model if batch.bulk == len(batch.images) else "interactive"] += 1
    assert turns["interactive"] == pytest.approx(700, abs=20)
    assert turns["b"] > 20


@pytest.mark.parametrize(
    ("sizes", "images", "padded", "halved"),
    [
        (Sizes(32), 5, 5, Sizes(2, (), True)),
        (Sizes(32, (1, 2, 4, 8, 16, 32)), 5, 8, Sizes(4, (1, 2, 4), True)),
        (Sizes(24, (1, 8, 24)), 24, 24, Sizes(8, (1, 8), True)),
        (Sizes(32, (8, 32)), 1, 8, Sizes(4, (4,), True)),
        (Sizes(1), 1, 1, Sizes(1, (), True)),
    ],
)
def test_sizes(sizes: Sizes, images: int, padded: int, halved: Sizes) -> None:
    assert sizes.padded(images) == padded
    sizes.halve(padded)
    assert sizes == halved
