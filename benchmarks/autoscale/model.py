"""The event core: images arrive in lots, wait in one queue, and are done by replicas that start, drain and die.

Nothing here decides how many replicas there should be: an autoscaler (`scalers.py`) sets `Simulation.wanted`.
Time is in seconds from the start. The same calls give the same run: nothing is random here.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

NODE_GONE_SECONDS: Final = 340.0  # Kubernetes notices after 40 s, and gives the node's pods up 300 s later
RATE_SLOT_SECONDS: Final = 10.0
RATE_SLOTS: Final = 6


class State(Enum):
    """Of a replica."""

    STARTING = auto()
    READY = auto()
    DRAINING = auto()  # takes nothing new
    DEAD = auto()  # Kubernetes still counts it
    GONE = auto()


@dataclass(frozen=True, slots=True)
class Kind:
    """What all replicas of a fleet are.

    Attributes:
        images_per_second: With full batches.
        window_images: Held at a time.
        start_seconds: From its creation until it takes work: a node, the container's image, the models.
        cpu_share: Of the CPU that it requests, while it works at full rate.
        drain_seconds: From SIGTERM on it finishes what it holds for so long, and hands the rest back.
    """

    images_per_second: float
    window_images: int
    start_seconds: float
    cpu_share: float = 1.0
    drain_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """When what a dead replica held is queued again; `by_worker` if only a living worker does that."""

    seconds: float
    by_worker: bool


@dataclass(slots=True)
class Lot:
    """Images that arrived together."""

    arrived_at: float
    images: int


@dataclass(slots=True, eq=False)
class Replica:
    """A pod. `work` is how many of the images that it holds will be done when its present slice ends."""

    created_at: float
    state: State = State.STARTING
    held: deque[Lot] = field(default_factory=deque)
    images: int = 0
    work: int = 0
    slice_began_at: float = 0.0
    busy_seconds: float = 0.0

    def busy_until(self, now: float) -> float:
        """Seconds that it has worked so far."""
        return self.busy_seconds + (now - self.slice_began_at if self.work else 0.0)


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at one time; `replicas` are paid for."""

    at: float
    outstanding: int
    replicas: int


class Simulation:
    """A queue and its fleet.

    Args:
        kind: What a replica is.
        recovery: Of what dead replicas held.
        slice_seconds: How finely a replica's work is cut into events.
    """

    def __init__(self, kind: Kind, recovery: Recovery, *, slice_seconds: float = 1.0) -> None:
        self.kind = kind
        self.recovery = recovery
        self.now = 0.0
        self.wanted = 0
        self.queued = self.arrived = self.done = self.interrupted = 0
        self.finished_at = 0.0
        self.replicas: list[Replica] = []
        self.ages: list[tuple[float, int]] = []
        self.samples: list[Sample] = []
        self._slice_images = max(1, int(kind.images_per_second * slice_seconds))
        self._queue: deque[Lot] = deque()
        self._lost: deque[Lot] = deque()  # held by the dead
        self._orphans: deque[Lot] = deque()  # could be queued again, if there were a worker
        self._accepted: Counter[float] = Counter()  # by slot
        self._paid_seconds = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    # What an autoscaler may see

    @property
    def running(self) -> int:
        """Images under a lease, also those of the dead."""
        return self.arrived - self.done - self.queued

    @property
    def adrift(self) -> int:
        """Those of them whose replica is dead."""
        return sum(lot.images for lot in (*self._lost, *self._orphans))

    def accepted_rate(self) -> float:
        """Images per second that arrived in the last full slots, as the ledger knows it."""
        slot = self.now // RATE_SLOT_SECONDS
        return sum(self._accepted[slot - back] for back in range(1, RATE_SLOTS + 1)) / (RATE_SLOTS * RATE_SLOT_SECONDS)

    def alive(self, *states: State) -> list[Replica]:
        """Replicas in one of these states, oldest first."""
        return [replica for replica in self.replicas if replica.state in states]

    # The run

    def at(self, time: float, event: Callable[[], None]) -> None:
        """Have something happen; what is for the same time happens in the order of these calls."""
        heapq.heappush(self._events, (time, next(self._order), event))

    def every(self, seconds: float, event: Callable[[], None]) -> None:
        """Have something happen now and again and again."""

        def happen() -> None:
            event()
            self.at(self.now + seconds, happen)

        self.at(self.now, happen)

    def run(self, until: float) -> None:
        """Let all happen that is due by then."""
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until

    def replica_hours(self) -> float:
        """What is paid for: every replica from its creation to its end."""
        paid = self._paid_seconds + sum(self.now - replica.created_at for replica in self._paid())
        return paid / 3600

    def sample(self) -> None:
        """Note how the fleet is now."""
        self.samples.append(Sample(self.now, self.arrived - self.done, len(self._paid())))

    # What happens to the fleet

    def arrive(self, images: int) -> None:
        """Images are submitted."""
        if not images:
            return
        self.arrived += images
        self.queued += images
        self._accepted[self.now // RATE_SLOT_SECONDS] += images
        self._queue.append(Lot(self.now, images))
        self._wake()

    def arrive_orphaned(self, images: int) -> None:
        """Images that a replica held which died just now, and of which nothing else is left."""
        self.arrived += images
        self._lose(deque([Lot(self.now, images)]))

    def scale(self, wanted: int) -> None:
        """What a Deployment does: make pods, or end some, those that do no work first."""
        self.wanted = wanted
        present = self.alive(State.STARTING, State.READY, State.DEAD)
        for _ in range(wanted - len(present)):
            self._create()
        newest_first = sorted(present, key=lambda replica: (replica.state is State.READY, -replica.created_at))
        for replica in newest_first[: max(0, len(present) - wanted)]:
            self._stop(replica)

    def kill(self, replica: Replica) -> None:
        """Its node is gone, without a warning; Kubernetes replaces it when it has noticed."""
        self._paid_seconds += self.now - replica.created_at
        self.interrupted += replica.images
        self._lose(replica.held)
        replica.held, replica.images, replica.work, replica.state = deque(), 0, 0, State.DEAD
        self.at(self.now + NODE_GONE_SECONDS, lambda: self._bury(replica))

    # Inside

    def _paid(self) -> list[Replica]:
        return self.alive(State.STARTING, State.READY, State.DRAINING)

    def _create(self) -> None:
        replica = Replica(self.now)
        self.replicas.append(replica)
        self.at(self.now + self.kind.start_seconds, lambda: self._ready(replica))

    def _ready(self, replica: Replica) -> None:
        if replica.state is not State.STARTING:
            return
        replica.state = State.READY
        self._queue_again(self._orphans)
        self._work(replica)

    def _stop(self, replica: Replica) -> None:
        if replica.state is State.READY and replica.images:
            replica.state = State.DRAINING
            self.at(self.now + self.kind.drain_seconds, lambda: self._hand_back(replica))
        else:
            self._end(replica)

    def _hand_back(self, replica: Replica) -> None:
        """The time for draining is over."""
        if replica.state is State.DRAINING:
            self.interrupted += replica.images
            held, replica.held = replica.held, deque()
            self._end(replica)
            self._queue_again(held)

    def _end(self, replica: Replica) -> None:
        if replica.state is not State.DEAD:  # the dead were paid for until they died
            self._paid_seconds += self.now - replica.created_at
        replica.state, replica.images, replica.work = State.GONE, 0, 0
        self.replicas.remove(replica)

    def _bury(self, replica: Replica) -> None:
        if replica.state is State.DEAD:
            self._end(replica)
            self.scale(self.wanted)

    def _lose(self, held: deque[Lot]) -> None:
        self._lost.extend(held)

        def recover() -> None:
            for lot in held:
                self._lost.remove(lot)
            if self.recovery.by_worker and not self.alive(State.READY):
                self._orphans.extend(held)
            else:
                self._queue_again(held)

        self.at(self.now + self.recovery.seconds, recover)

    def _queue_again(self, lots: deque[Lot]) -> None:
        """At their old place, which is the front."""
        while lots:
            lot = lots.pop()
            self.queued += lot.images
            self._queue.appendleft(lot)
        self._wake()

    def _wake(self) -> None:
        """Idle replicas share what waits; busy ones take more when a slice ends."""
        idle = [replica for replica in self.alive(State.READY) if not replica.work]
        for left, replica in zip(range(len(idle), 0, -1), idle, strict=True):
            self._work(replica, -(-self.queued // left))

    def _work(self, replica: Replica, most: int | None = None) -> None:
        """Fill its window, and begin a slice of what it holds."""
        if replica.state is State.READY:
            self._take(replica, self.kind.window_images if most is None else most)
        if not replica.images or replica.work:
            return
        replica.work = min(replica.images, self._slice_images)
        replica.slice_began_at = self.now
        began = self.now
        ends = began + replica.work / self.kind.images_per_second
        self.at(ends, lambda: self._slice_done(replica, began))

    def _take(self, replica: Replica, most: int) -> None:
        room = min(most, self.kind.window_images - replica.images)
        while room > 0 and self._queue:
            lot = self._queue[0]
            taken = min(room, lot.images)
            if taken == lot.images:
                self._queue.popleft()
            lot.images -= taken
            replica.held.append(Lot(lot.arrived_at, taken))
            replica.images += taken
            self.queued -= taken
            room -= taken

    def _slice_done(self, replica: Replica, began: float) -> None:
        if not replica.work or replica.slice_began_at != began:
            return  # it died
        replica.busy_seconds += self.now - began
        left, replica.work = replica.work, 0
        replica.images -= left
        self.done += left
        self.finished_at = self.now
        while left:
            lot = replica.held[0]
            images = min(left, lot.images)
            self.ages.append((self.now - lot.arrived_at, images))
            lot.images -= images
            left -= images
            if not lot.images:
                replica.held.popleft()
        if replica.state is State.DRAINING and not replica.images:
            self._end(replica)
        else:
            self._work(replica)
