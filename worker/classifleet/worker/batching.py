"""What a device runs next: policy alone, which knows neither threads nor clocks.

    lane (see `lanes`) ─► model: who has had the least of the device ─► its most urgent images (see `queues`) ─► Batch

Work-conserving: whatever is ready runs at once when the device is idle, so a lonely image pays no delay; while it is
busy a batch forms, so a backlog gives full batches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from classifleet.config import Lane
from classifleet.worker.lanes import LANES, next_turn
from classifleet.worker.queues import Queue, SpareQueue, Waiting

TOP_UP_SHARE: Final = 4
LEAD_SECONDS: Final = 30.0
"""No model is counted as further ahead of the others: one slow batch must not shut it out for minutes."""

SPARE_IMAGES: Final = 64
"""Images that may wait for spare time of the device, in all; more are not taken."""
SPARE_BATCH: Final = 4  # what real work that comes just then waits for

Queues = Mapping[Lane, Queue]
Reason = Literal["full", "memory", "lane", "drained", "bisected", "spare"]


@dataclass(slots=True)
class Sizes:
    """How large the batches of a model are.

    Attributes:
        most: Images, at most.
        buckets: Sizes that batches are padded to, rising; none: they are not padded.
        halved: Whether the device's memory was too small for what `most` was at first.
    """

    most: int
    buckets: tuple[int, ...] = ()
    halved: bool = False

    def padded(self, images: int) -> int:
        """The size that a batch of so many images is run with."""
        return next((bucket for bucket in self.buckets if bucket >= images), images)

    def halve(self, size: int) -> None:
        """A batch of this size was too large for the device's memory."""
        half = max(1, size // 2)
        smaller = tuple(bucket for bucket in self.buckets if bucket <= half)
        self.most = min(self.most, *smaller[-1:] or (half,))
        self.buckets = smaller or ((half,) if self.buckets else ())
        self.halved = True


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one model that are run together, and why there are not more."""

    model: str
    images: list[Waiting]
    bulk: int
    reason: Reason


class Shares:
    """The device's time, shared between the models that wait (start-time fair queueing).

    Each model's account is charged with the seconds that its batches have taken; the lowest is served. Nobody saves up
    while nothing waits: an account that comes back begins where the others are now.
    """

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._waited: Collection[str] = ()
        self._now = 0.0  # the account of the model that was served last, when it was

    def pick(self, due: Mapping[str, float]) -> str:
        """Whose turn it is, of all models for which something waits, by when their first image is due."""
        for model in due:
            if model not in self._waited:
                self._used[model] = max(self._used.get(model, 0.0), self._now)
        self._waited = due.keys()
        model = least_served(self._used, due)
        self._now = max(self._now, self._used[model])
        return model

    def charge(self, model: str, seconds: float) -> None:
        """A model has had the device for so long."""
        self._used[model] = min(self._used.get(model, self._now) + seconds, self._now + LEAD_SECONDS)


def least_served(used: Mapping[str, float], due: Mapping[str, float]) -> str:
    """Of the models that wait (and when their first image is due) the one that has used the least."""
    return min(due, key=lambda model: (used[model], due[model], model))


class Backlog:
    """All that waits for a device. Not safe across threads."""

    def __init__(self) -> None:
        self._queues: dict[str, Queues] = {}
        self._sizes: dict[str, Sizes] = {}
        self._shares = {lane: Shares() for lane in LANES}
        self._spare = SpareQueue(SPARE_IMAGES)
        self._dropped: list[tuple[str, Waiting]] = []
        self._passed_over = 0  # turns without bulk since bulk waits

    def open(self, model: str, sizes: Sizes) -> None:
        """Let images wait for a model; `sizes` may change later."""
        self._queues[model] = {lane: Queue(lambda waiting: self._dropped.append((model, waiting))) for lane in LANES}
        self._sizes[model] = sizes

    def close(self, model: str) -> None:
        """Let nothing wait for a model any more; what does is dropped."""
        for queue in self._queues.pop(model).values():
            queue.clear()
        del self._sizes[model]
        self._spare.forget(model)

    def add_spare(self, model: str, waiting: Waiting) -> bool:
        """Queue an image that is run only while no other waits; false if too many do, or the model is not here."""
        return model in self._queues and self._spare.add(model, waiting)

    def add(self, model: str, lane: Lane, waiting: Waiting) -> None:
        """Queue an image.

        Raises:
            KeyError: There is no such model.
        """
        self._queues[model][lane].add(waiting)

    def next(self, now: float) -> Batch | None:
        """The batch to run now; None if nothing waits. `now` is on the clock of the images' times."""
        batch = self._next(now)
        while batch is not None and not batch.images:  # given up, on its loop, since it was seen to be due
            batch = self._next(now)
        return batch

    def _next(self, now: float) -> Batch | None:
        due = {lane: self._due(lane, now) for lane in LANES}
        lane = next_turn(bool(due["interactive"]), bool(due["bulk"]), self._passed_over)
        if lane is None:
            return self._next_spare(now)
        model = self._shares[lane].pick(due[lane])
        batch = compose(model, self._queues[model], self._sizes[model], lane, now)
        # bulk that tops up does not stand for the bulk of another model
        served = lane == "bulk" or (batch.bulk > 0 and len(due["bulk"]) == 1)
        self._passed_over = self._passed_over + 1 if due["bulk"] and not served else 0
        return batch

    def has_full_batch(self) -> bool:
        """Whether so many images of one model wait that waiting longer would not make their batch larger."""
        return any(sum(map(len, queues.values())) >= self._sizes[model].most for model, queues in self._queues.items())

    def charge(self, batch: Batch, seconds: float) -> None:
        """A batch has taken so long: each lane's account of its model bears its images' part; spare time is free."""
        if batch.reason == "spare":
            return
        bulk = seconds * batch.bulk / len(batch.images)
        if batch.bulk:
            self._shares["bulk"].charge(batch.model, bulk)
        if batch.bulk < len(batch.images):
            self._shares["interactive"].charge(batch.model, seconds - bulk)

    def dropped(self) -> list[tuple[str, Waiting]]:
        """What was not worth running since this was last asked, with its model."""
        dropped = self._dropped
        if dropped:
            self._dropped = []
        return dropped

    def _next_spare(self, now: float) -> Batch | None:
        images = self._spare.take(lambda model: min(SPARE_BATCH, self._sizes[model].most), now)
        return Batch(images[0][0], [waiting for _, waiting in images], 0, "spare") if images else None

    def _due(self, lane: Lane, now: float) -> dict[str, float]:
        heads = ((model, queues[lane].first_due(now)) for model, queues in self._queues.items())
        return {model: due for model, due in heads if due is not None}


def compose(model: str, queues: Queues, sizes: Sizes, first: Lane, now: float) -> Batch:
    """A batch of one model: the lane whose turn it is first, each in order of urgency.

    Interactive images are joined by bulk up to a quarter of a full batch only, which is what they would wait for, or
    as far as the batch is padded anyway.
    """
    most = sizes.most
    if first == "interactive":
        interactive = min(most, len(queues["interactive"]))
        most = min(most, max(sizes.padded(interactive), most // TOP_UP_SHARE))
    images = queues[first].take(most, now)
    taken, second = len(images), next(lane for lane in LANES if lane != first)
    images += queues[second].take(most - taken, now)
    bulk = taken if first == "bulk" else len(images) - taken
    left = first == "interactive" and queues["bulk"].first_due(now) is not None
    return Batch(model, images, bulk, why(len(images), sizes, left))


def why(images: int, sizes: Sizes, bulk_left: bool) -> Reason:
    """Why a batch has its size: it is full, bulk was not to delay interactive, or nothing more waited."""
    if images >= sizes.most:
        return "memory" if sizes.halved else "full"
    return "lane" if bulk_left else "drained"
