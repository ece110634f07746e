"""What happens to the fleets, and who looks after them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.autoscale.model import Kind, Recovery, Sample, Simulation, State
from benchmarks.autoscale.scalers import (
    CHUNK_IMAGES,
    Autoscaler,
    Cpu,
    Limits,
    Outstanding,
    OutstandingAndArrivals,
    QueueLength,
    Signal,
)

from classifleet.config import Settings
from classifleet.config.autoscale import target_images

RESULTS: Final = Path(__file__).parents[1] / "results" / "fleet.json"
MEASURE: Final = "python benchmarks/fleet.py --json benchmarks/results/fleet.json"

DRAIN_SECONDS: Final = 300.0
SHORT_DRAIN_SECONDS: Final = 30.0
HOUR: Final = 3600.0
BURST: Final = 1_000_000
WINDOW_IMAGES: Final = Settings.model_fields["submission_window"].default * CHUNK_IMAGES  # of a job, in the queue
SAMPLES: Final = 300
SEED: Final = 1

# Assumptions, not measurements
GPU_IMAGES_PER_SECOND: Final = 1500.0
GPU_CPU_SHARE: Final = 0.6  # decoding for a GPU at its limit
CPU_START_SECONDS: Final = 60.0
COLD_START_SECONDS: Final = 360.0
LEDGER: Final = Recovery(90.0, by_worker=False)  # a lease, and what the reconciler waits on top
CELERY: Final = Recovery(3600.0, by_worker=True)  # its visibility timeout; only a worker restores what is unacked


@dataclass(frozen=True, slots=True)
class Contestant:
    """An autoscaler with the fleet that it goes with."""

    name: str
    signal: Callable[[Simulation], Signal]
    recovery: Recovery


def _with_arrivals(simulation: Simulation) -> Signal:
    return OutstandingAndArrivals(simulation, DRAIN_SECONDS)


def _ours(drain_seconds: float) -> Callable[[Simulation], Signal]:
    return lambda simulation: Outstanding(simulation, drain_seconds)


def _same_goal(simulation: Simulation) -> Signal:
    kind = simulation.kind
    images = target_images(kind.images_per_second, DRAIN_SECONDS, kind.window_images)
    return QueueLength(simulation, images / CHUNK_IMAGES)


CONTESTANTS: Final = (
    Contestant("outstanding, goal 300 s", _ours(DRAIN_SECONDS), LEDGER),
    Contestant("outstanding, goal 30 s", _ours(SHORT_DRAIN_SECONDS), LEDGER),
    Contestant("goal 300 s and arrivals", _with_arrivals, LEDGER),
    Contestant("LLEN, goal 300 s", _same_goal, CELERY),
    Contestant("LLEN, 5 messages", lambda simulation: QueueLength(simulation, 5), CELERY),
    Contestant("CPU at 80 %", Cpu, LEDGER),
)

Load = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A day or an hour of a fleet.

    Attributes:
        title: Of its row.
        kind: Its replicas.
        limits: Of their number.
        seconds: Its length.
        load: Images per second at a time.
        begin: Replicas at the start.
        events: What else happens, by time.
        slice_seconds: How finely time is cut.
    """

    title: str
    kind: Kind
    limits: Limits
    seconds: float
    load: Load = lambda _: 0.0
    begin: int = 0
    events: tuple[tuple[float, Callable[[Simulation], None]], ...] = ()
    slice_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a scenario under one contestant.

    `drain_seconds` is from the last arrival to the last record; None if some images never had one.
    """

    scenario: str
    contestant: str
    images: int
    drain_seconds: float | None
    p95_age_seconds: float
    replica_hours: float
    most_replicas: int
    interrupted: int
    samples: tuple[Sample, ...]


def measured_kind(file: Path = RESULTS) -> Kind:
    """A CPU replica as `benchmarks/fleet.py` measured it.

    Raises:
        SystemExit: It was not run; the message is the command.
    """
    if not file.is_file():
        raise SystemExit(f"{file} is missing; write it with: {MEASURE}")
    figures = json.loads(file.read_text())
    return Kind(figures["images_per_second"], figures["window_images"], CPU_START_SECONDS)


def scenarios(cpu: Kind) -> list[Scenario]:
    """All of them; loads are in multiples of what a replica does."""
    gpu = Kind(GPU_IMAGES_PER_SECOND, cpu.window_images, COLD_START_SECONDS, GPU_CPU_SHARE)
    rate, limits, warm = cpu.images_per_second, Limits(0, 20), 2 * cpu.start_seconds
    return [
        Scenario("steady", cpu, limits, 3 * HOUR, _between(warm, 2 * HOUR, 4.5 * rate), begin=5),
        Scenario("diurnal", cpu, limits, 24 * HOUR, lambda at: 8 * rate * _daylight(at), slice_seconds=5.0),
        Scenario("burst of a million", cpu, limits, 1.5 * HOUR, events=((600.0, lambda it: it.arrive(BURST)),)),
        Scenario("a million as one job", cpu, limits, 1.5 * HOUR, events=((600.0, partial(_submit, images=BURST)),)),
        Scenario("cold start of 6 min (GPU)", gpu, limits, 3 * HOUR, _between(0, HOUR, 6 * GPU_IMAGES_PER_SECOND)),
        Scenario(
            "killed node",
            cpu,
            limits,
            3 * HOUR,
            _between(warm, HOUR, 4.5 * rate),
            begin=6,
            events=((1800.0, _kill_a_node),),
        ),
        Scenario("orphan at zero", cpu, limits, 2 * HOUR, events=((0.0, _leave_an_orphan),)),
    ]


def play(scenario: Scenario, contestant: Contestant, *, seed: int = SEED) -> Outcome:
    """Let it happen."""
    simulation = Simulation(scenario.kind, contestant.recovery, slice_seconds=scenario.slice_seconds)
    simulation.scale(scenario.begin)
    simulation.every(scenario.seconds / SAMPLES, simulation.sample)
    last_arrival = _load(simulation, scenario, random.Random(seed))
    Autoscaler(simulation, contestant.signal(simulation), scenario.limits).start()
    simulation.run(scenario.seconds)
    finished = simulation.done == simulation.arrived
    return Outcome(
        scenario.title,
        contestant.name,
        simulation.arrived,
        max(0.0, simulation.finished_at - last_arrival()) if finished else None,
        percentile(simulation.ages, 0.95),
        simulation.replica_hours(),
        max(sample.replicas for sample in simulation.samples),
        simulation.interrupted,
        tuple(simulation.samples),
    )


def _load(simulation: Simulation, scenario: Scenario, chance: random.Random) -> Callable[[], float]:
    """Have its images arrive, and the rest of it happen; the answer tells when images arrived last.

    The lots' times are random as well, or what looks at the fleet every so often would see it always in one phase.
    """
    last = [0.0]

    def arrive(gap: float) -> None:
        mean = scenario.load(simulation.now) * gap
        if images := max(0, round(chance.gauss(mean, math.sqrt(mean)))):
            simulation.arrive(images)
            last[0] = simulation.now
        following = chance.uniform(0.5, 1.5) * scenario.slice_seconds
        simulation.at(simulation.now + following, lambda: arrive(following))

    for at, event in scenario.events:
        simulation.at(at, partial(event, simulation))
        last[0] = max(last[0], at)
    simulation.at(0.0, lambda: arrive(0.0))
    return lambda: last[0]


def play_all(cpu: Kind) -> Iterator[Outcome]:
    """Every scenario under every contestant."""
    for scenario in scenarios(cpu):
        for contestant in CONTESTANTS:
            yield play(scenario, contestant)


def percentile(ages: list[tuple[float, int]], share: float) -> float:
    """The age that so large a share of the images did not pass; NaN of none."""
    left = share * sum(images for _, images in ages)
    for age, images in sorted(ages):
        left -= images
        if left <= 0:
            return age
    return math.nan


def _between(begin: float, end: float, rate: float) -> Load:
    return lambda at: rate if begin <= at < end else 0.0


def _daylight(at: float) -> float:
    """Nothing from six in the evening to six in the morning, and most at noon."""
    return max(0.0, -math.cos(2 * math.pi * at / (24 * HOUR)))


def _submit(simulation: Simulation, *, images: int) -> None:
    """One job: its producer keeps `submission_window` chunks in the queue, and holds back the rest."""
    lot = min(images, WINDOW_IMAGES - (simulation.arrived - simulation.done))
    if lot > 0:
        simulation.arrive(lot)
    if images > lot:
        simulation.at(simulation.now + 1.0, partial(_submit, simulation, images=images - max(lot, 0)))


def _kill_a_node(simulation: Simulation) -> None:
    """The one whose replica holds most, as soon as one is at work."""
    if ready := simulation.alive(State.READY):
        simulation.kill(max(ready, key=lambda replica: replica.images))
    else:
        simulation.at(simulation.now + 1.0, lambda: _kill_a_node(simulation))


def _leave_an_orphan(simulation: Simulation) -> None:
    simulation.arrive_orphaned(CHUNK_IMAGES)
