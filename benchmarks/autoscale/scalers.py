"""How Kubernetes decides: KEDA's poll between none and one replica, the HorizontalPodAutoscaler for all else.

Modelled after KEDA 2 and `pkg/controller/podautoscaler` of Kubernetes: how often they look, HPA's tolerance, its
stabilisation and its limits of growing and shrinking, its view of pods that are not ready, KEDA's cool-down.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from benchmarks.autoscale.model import Replica, Simulation, State

from classifleet.config.autoscale import target_images

HPA_SECONDS: Final = 15.0
KEDA_SECONDS: Final = 15.0  # as the chart has it; KEDA's own default is 30 s
TOLERANCE: Final = 0.1
STABLE_SECONDS: Final = 300.0  # the largest answer of so long is what a fleet shrinks to
COOLDOWN_SECONDS: Final = 300.0  # without work, before the last replica goes
GROW_SECONDS: Final = 30.0  # doubles at most
SHRINK_SECONDS: Final = 60.0  # loses one at most
CHUNK_IMAGES: Final = 32
BUSY_SHARE: Final = 0.8


class Outstanding:
    """This project's signal: images queued and running; `classifleet.config.autoscale.replicas` in Kubernetes."""

    from_zero = True

    def __init__(self, simulation: Simulation, drain_seconds: float) -> None:
        kind = simulation.kind
        self._simulation = simulation
        self._target = target_images(kind.images_per_second, drain_seconds, kind.window_images)

    def value(self) -> float:
        """What KEDA reads: more than zero keeps the last replica, or starts the first."""
        return self._outstanding()

    def replicas(self, present: int) -> int:
        """HPA's answer to an external metric of type AverageValue."""
        return average_value(self._outstanding(), self._target, present)

    def _outstanding(self) -> int:
        return self._simulation.queued + self._simulation.running


class OutstandingAndArrivals(Outstanding):
    """The same with a second trigger: `accepted_per_second`, as if replicas were to be 80 % busy. The larger wins."""

    def __init__(self, simulation: Simulation, drain_seconds: float) -> None:
        super().__init__(simulation, drain_seconds)
        self._rate = BUSY_SHARE * simulation.kind.images_per_second

    def value(self) -> float:
        """What keeps the last replica: work, or that there was some within the last minute."""
        return max(self._outstanding(), self._simulation.accepted_rate())

    def replicas(self, present: int) -> int:
        """HPA's answer to two metrics."""
        return max(super().replicas(present), average_value(self._simulation.accepted_rate(), self._rate, present))


class QueueLength:
    """LLEN of the broker's list: messages that no worker has taken yet."""

    from_zero = True

    def __init__(self, simulation: Simulation, messages: float) -> None:
        self._simulation = simulation
        self._target = messages

    def value(self) -> float:
        """What KEDA reads."""
        return math.ceil(self._simulation.queued / CHUNK_IMAGES)

    def replicas(self, present: int) -> int:
        """HPA's answer to an external metric of type AverageValue."""
        return average_value(self.value(), self._target, present)


class Cpu:
    """HPA on the share of the requested CPU that is used; there is no way to zero."""

    from_zero = False

    def __init__(self, simulation: Simulation, target: float = BUSY_SHARE) -> None:
        self._simulation = simulation
        self._target = target
        self._before: dict[Replica, float] = {}
        self._looked_at = 0.0

    def value(self) -> float:
        """Nothing that KEDA reads."""
        return 1.0

    def replicas(self, present: int) -> int:
        """HPA's answer to a resource metric: a pod that is not ready counts as idle where that hinders growing."""
        used = self._usage()
        unready = len(self._simulation.alive(State.STARTING, State.DEAD))
        if not used:
            return present
        ratio = sum(used) / len(used) / self._target
        if ratio > 1 and unready:
            ratio = sum(used) / (len(used) + unready) / self._target
            return present if ratio <= 1 + TOLERANCE else math.ceil(ratio * (len(used) + unready))
        return present if abs(1 - ratio) <= TOLERANCE else math.ceil(ratio * len(used))

    def _usage(self) -> list[float]:
        """Of each ready replica, since the last look."""
        now, share = self._simulation.now, self._simulation.kind.cpu_share
        seconds = now - self._looked_at
        busy = {replica: replica.busy_until(now) for replica in self._simulation.alive(State.READY)}
        used = [until - self._before.get(replica, 0.0) for replica, until in busy.items()]
        self._before, self._looked_at = busy, now
        return [each / seconds * share for each in used] if seconds else []


Signal = Outstanding | QueueLength | Cpu


def average_value(value: float, target: float, present: int) -> int:
    """HPA's `GetExternalPerPodMetricReplicas`."""
    ratio = value / (target * present)
    return present if abs(1 - ratio) <= TOLERANCE else math.ceil(value / target)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a fleet's size."""

    least: int
    most: int


class Autoscaler:
    """KEDA and HPA on one fleet: from `start` on they look at the signal and set the fleet's size."""

    def __init__(self, simulation: Simulation, signal: Signal, limits: Limits) -> None:
        self._simulation = simulation
        self._signal = signal
        self._least = limits.least if signal.from_zero else max(1, limits.least)
        self._most = limits.most
        self._active_at = simulation.now
        self._answers: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()

    def start(self) -> None:
        """Begin with the least, or with what there is, which counts as HPA's first answer."""
        self._simulation.scale(max(self._least, self._simulation.wanted))
        self._answers.append((self._simulation.now, self._simulation.wanted))
        self._simulation.every(KEDA_SECONDS, self._keda)
        self._simulation.every(HPA_SECONDS, self._hpa)

    def _keda(self) -> None:
        """Its operator: the first replica, and the last."""
        now, present = self._simulation.now, self._simulation.wanted
        if self._signal.value() > 0:
            self._active_at = now
            if not present:
                self._simulation.scale(max(1, self._least))
        elif present > self._least == 0 and now - self._active_at >= COOLDOWN_SECONDS:
            self._simulation.scale(0)

    def _hpa(self) -> None:
        present = self._simulation.wanted
        if not present:
            return  # HPA is off at zero
        now = self._simulation.now
        answer = self._signal.replicas(present)
        self._answers.append((now, answer))
        while self._answers[0][0] < now - STABLE_SECONDS:
            self._answers.popleft()
        stable = max(each for _, each in self._answers)
        if answer > present:
            wanted = min(answer, max(present, 2 * self._before(GROW_SECONDS)))
        else:
            wanted = max(min(present, stable), min(present, self._before(SHRINK_SECONDS) - 1))
        wanted = max(1, self._least, min(wanted, self._most))
        if wanted != present:
            self._changes.append((now, wanted - present))
            self._simulation.scale(wanted)

    def _before(self, seconds: float) -> int:
        """How many replicas there were so long ago, as far as HPA itself has changed that."""
        since = self._simulation.now - seconds
        while self._changes and self._changes[0][0] <= self._simulation.now - SHRINK_SECONDS:
            self._changes.popleft()
        return self._simulation.wanted - sum(change for at, change in self._changes if at > since)
