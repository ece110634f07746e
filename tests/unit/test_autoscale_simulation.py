"""The simulation behind docs/autoscaling.md: nothing is lost in it, and it gives what can be computed by hand."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import yaml
from benchmarks.autoscale.__main__ import PAGE, PICTURES, with_table
from benchmarks.autoscale.bars import bars
from benchmarks.autoscale.model import NODE_GONE_SECONDS, Kind, Recovery, Simulation, State
from benchmarks.autoscale.report import picture, seconds, table
from benchmarks.autoscale.scalers import (
    COOLDOWN_SECONDS,
    KEDA_SECONDS,
    Autoscaler,
    Cpu,
    Limits,
    Outstanding,
    QueueLength,
    average_value,
)
from benchmarks.autoscale.scenarios import (
    CELERY,
    CONTESTANTS,
    LEDGER,
    RESULTS,
    measured_kind,
    percentile,
    play,
    play_all,
    scenarios,
)
from hypothesis import given, settings
from hypothesis import strategies as st

KIND = Kind(images_per_second=100, window_images=500, start_seconds=0.0)
SLOW = replace(KIND, start_seconds=60.0)
BY_ITSELF = Recovery(90.0, by_worker=False)
BY_A_WORKER = Recovery(90.0, by_worker=True)


def started(kind=KIND, recovery=BY_ITSELF, replicas=1):
    simulation = Simulation(kind, recovery)
    simulation.scale(replicas)
    return simulation


def held(simulation):
    return sum(replica.images for replica in simulation.replicas)


@pytest.mark.parametrize(
    ("kind", "replicas", "images", "expected"),
    [
        (KIND, 1, 1000, 10.0),
        (KIND, 4, 1000, 2.5),
        (KIND, 1, 1, 0.01),
        (KIND, 4, 1_000_000, 2500.0),
        (SLOW, 1, 1000, 70.0),
        (replace(KIND, images_per_second=1000, window_images=100), 2, 10_000, 5.0),
    ],
)
def test_the_time_to_drain(kind, replicas, images, expected):
    simulation = started(kind, replicas=replicas)
    simulation.run(0.0)
    simulation.arrive(images)
    simulation.run(3600.0)
    assert (simulation.done, simulation.queued, simulation.running) == (images, 0, 0)
    assert simulation.finished_at == pytest.approx(expected)
    assert percentile(simulation.ages, 1.0) == pytest.approx(expected)
    assert simulation.replica_hours() == pytest.approx(replicas)


def test_below_its_capacity_a_fleet_keeps_up():
    simulation = started(replicas=2)
    simulation.every(1.0, lambda: simulation.arrive(190))
    simulation.run(600.0)
    assert percentile(simulation.ages, 1.0) < 2.0
    assert simulation.queued == 0


@pytest.mark.parametrize(
    ("recovery", "back_at"),
    [(BY_ITSELF, 5 + 90), (BY_A_WORKER, 5 + NODE_GONE_SECONDS)],  # a worker is there when the node is given up
)
def test_what_a_killed_node_held_is_done_by_the_next(recovery, back_at):
    simulation = started(recovery=recovery)
    simulation.run(0.0)
    simulation.arrive(1000)
    simulation.run(5.0)
    simulation.kill(simulation.replicas[0])
    assert (simulation.done, simulation.queued, simulation.adrift) == (500, 0, 500)
    assert simulation.interrupted == 500
    simulation.run(back_at - 0.01)
    assert simulation.queued == 0
    simulation.run(3600.0)
    assert simulation.done == 1000
    assert simulation.finished_at == pytest.approx(5 + NODE_GONE_SECONDS + 5)


def test_an_orphan_comes_back_by_itself_or_waits_for_a_worker():
    for recovery, queued in ((BY_ITSELF, 32), (BY_A_WORKER, 0)):
        simulation = started(recovery=recovery, replicas=0)
        simulation.arrive_orphaned(32)
        simulation.run(89.0)
        assert (simulation.queued, simulation.running) == (0, 32)
        simulation.run(10_000.0)
        assert (simulation.queued, simulation.running) == (queued, 32 - queued)
        simulation.scale(1)
        simulation.run(10_001.0)
        assert simulation.done == 32


@pytest.mark.parametrize(("drain_seconds", "interrupted"), [(60.0, 0), (2.5, 300)])
def test_a_replica_that_is_ended_finishes_or_hands_back(drain_seconds, interrupted):
    simulation = started(replace(KIND, drain_seconds=drain_seconds))
    simulation.run(0.0)
    simulation.arrive(500)
    simulation.scale(0)
    simulation.arrive(100)
    simulation.run(1000.0)
    assert (simulation.interrupted, simulation.queued) == (interrupted, 100 + interrupted)
    assert simulation.done == 500 - interrupted
    assert simulation.replica_hours() == pytest.approx(min(5.0, drain_seconds) / 3600)


def test_replicas_that_do_no_work_end_first():
    simulation = started(SLOW, replicas=1)
    simulation.run(60.0)
    simulation.scale(3)
    simulation.scale(2)
    assert [replica.state for replica in simulation.replicas] == [State.READY, State.STARTING]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(1, 2000)),
        st.tuples(st.just("orphan"), st.integers(1, 100)),
        st.tuples(st.just("scale"), st.integers(0, 5)),
        st.tuples(st.just("kill"), st.integers(0, 4)),
        st.tuples(st.just("wait"), st.integers(1, 300)),
    ),
    max_size=25,
)
KINDS = st.builds(
    Kind,
    images_per_second=st.floats(1, 1000),
    window_images=st.integers(1, 600),
    start_seconds=st.floats(0, 120),
    drain_seconds=st.floats(0, 30),
)


@settings(max_examples=60, deadline=None)
@given(KINDS, ACTIONS, st.sampled_from([BY_ITSELF, BY_A_WORKER]))
def test_every_image_is_at_one_place_and_in_the_end_done_once(kind, actions, recovery):
    simulation = Simulation(kind, recovery)
    for action, number in actions:
        match action:
            case "arrive":
                simulation.arrive(number)
            case "orphan":
                simulation.arrive_orphaned(number)
            case "scale":
                simulation.scale(number)
            case "kill":
                ready = simulation.alive(State.READY, State.DRAINING)
                if number < len(ready):
                    simulation.kill(ready[number])
            case _:
                simulation.run(simulation.now + number)
        assert simulation.running == held(simulation) + simulation.adrift
        assert min(simulation.queued, simulation.running) >= 0
        assert len(simulation.alive(State.STARTING, State.READY, State.DEAD)) >= simulation.wanted
    simulation.scale(1)
    simulation.run(simulation.now + 1e6)
    assert simulation.done == simulation.arrived == sum(images for _, images in simulation.ages)
    assert held(simulation) == simulation.adrift == 0


def sizes(signal, limits, seconds, *, kind=KIND, begin=0, arrivals=None):
    """The fleet's size at each of HPA's looks."""
    simulation = Simulation(kind, LEDGER)
    simulation.scale(begin)
    Autoscaler(simulation, signal(simulation), limits).start()
    seen = []
    simulation.every(15.0, lambda: seen.append(simulation.wanted))
    for at, images in (arrivals or {}).items():
        simulation.at(at, lambda images=images: simulation.arrive(images))
    simulation.run(seconds)
    return seen


def test_a_fleet_doubles_every_half_minute_up_to_its_limit():
    never_ready = replace(KIND, start_seconds=1e9)
    seen = sizes(lambda it: Outstanding(it, 100.0), Limits(0, 10), 150.0, kind=never_ready, arrivals={1.0: 1_000_000})
    assert seen == [0, 2, 2, 4, 4, 8, 8, 10, 10, 10, 10]


def test_it_shrinks_by_one_a_minute_five_minutes_after_the_last_large_answer():
    seen = sizes(lambda it: Outstanding(it, 100.0), Limits(1, 10), 900.0, begin=5, arrivals={1.0: 58_000})
    last_of_five = 30.0  # then 43,500 images are left, of 10,000 a replica
    assert seen[:23] == [5] * 23
    assert seen[23] == 4
    assert 23 * 15.0 > last_of_five + 300 >= 22 * 15.0
    drops = [index for index, (before, after) in enumerate(pairwise(seen)) if after != before]
    assert all(later - earlier >= 4 for earlier, later in pairwise(drops))  # 60 s
    assert seen[-1] == 1


def test_it_goes_to_zero_after_the_cool_down():
    seen = sizes(lambda it: Outstanding(it, 100.0), Limits(0, 10), 900.0, begin=1, arrivals={1.0: 5_000})
    assert seen.index(0) * 15.0 == 45.0 + 300.0  # the last poll that saw work was at 45 s
    assert set(seen[seen.index(0) :]) == {0}


@pytest.mark.parametrize(
    ("value", "target", "present", "expected"),
    [(100, 10, 5, 10), (105, 10, 10, 10), (109, 10, 10, 10), (112, 10, 10, 12), (91, 10, 10, 10), (80, 10, 10, 8)],
)
def test_the_tolerance(value, target, present, expected):
    assert average_value(value, target, present) == expected


@pytest.mark.parametrize(("share", "most"), [(1.0, 10), (0.6, 1)])
def test_cpu_says_nothing_of_a_backlog_when_something_else_is_the_limit(share, most):
    seen = sizes(Cpu, Limits(0, 10), 3600.0, kind=replace(KIND, cpu_share=share), arrivals={1.0: 2_000_000})
    assert (min(seen), max(seen)) == (1, most)


def test_a_queue_s_length_does_not_see_what_is_running():
    assert max(sizes(lambda it: QueueLength(it, 5), Limits(0, 10), 1000.0, arrivals={})) == 0
    for recovery, wakes in ((LEDGER, True), (CELERY, False)):
        simulation = Simulation(KIND, recovery)
        simulation.arrive_orphaned(32)
        Autoscaler(simulation, QueueLength(simulation, 5), Limits(0, 10)).start()
        simulation.run(10_000.0)
        assert (simulation.done == 32) is wakes


def test_the_same_seed_is_the_same_run():
    [killed] = [scenario for scenario in scenarios(KIND) if scenario.title == "killed node"]
    assert play(killed, CONTESTANTS[0]) == play(killed, CONTESTANTS[0])
    assert play(killed, CONTESTANTS[0], seed=2) != play(killed, CONTESTANTS[0])


def test_a_missing_measurement_says_the_command(tmp_path):
    with pytest.raises(SystemExit, match=r"fleet\.py --json"):
        measured_kind(tmp_path / "fleet.json")


def test_keda_looks_as_often_as_in_the_chart():
    keda = yaml.safe_load((PAGE.parents[1] / "helm" / "classifleet" / "values.yaml").read_text())["keda"]
    assert (keda["pollingInterval"], keda["cooldownPeriod"]) == (KEDA_SECONDS, COOLDOWN_SECONDS)


def test_the_page_shows_what_the_simulation_finds():
    """If it does not: `python -m benchmarks.autoscale`."""
    outcomes = list(play_all(measured_kind()))
    page = PAGE.read_text()
    assert with_table(page, table(outcomes)) == page
    assert f"{json.loads(RESULTS.read_text())['images_per_second']:g} images/s" in page
    for path, draw in PICTURES.items():
        assert path.read_text() == draw(outcomes), path.name
    assert bars(outcomes).count("<rect") == 1 + sum(3 - (it.drain_seconds is None) for it in outcomes)
    assert picture(outcomes).count("<path") == 1 * len(CONTESTANTS) + len(scenarios(KIND)) * 2 * (1 + len(CONTESTANTS))
    by_name = {(outcome.scenario, outcome.contestant): outcome for outcome in outcomes}
    ours = [outcome for (_, name), outcome in by_name.items() if "LLEN" not in name and "CPU" not in name]
    assert all(outcome.drain_seconds is not None for outcome in ours)
    assert by_name["orphan at zero", "LLEN, goal 300 s"].drain_seconds is None


@pytest.mark.parametrize(("value", "text"), [(0.4, "0 s"), (119.4, "119 s"), (125, "2 min"), (float("nan"), "-")])
def test_times_in_the_table(value, text):
    assert seconds(value) == text
