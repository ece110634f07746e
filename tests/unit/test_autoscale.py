"""How many replicas a queue needs, and that Kubernetes computes the same."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifleet.config.autoscale import replicas, target_images

IMAGES = st.integers(0, 10**10)
RATES = st.floats(0.1, 1e5)
SECONDS = st.floats(1, 86_400)
WINDOWS = st.integers(1, 10**6)
FLEETS = st.integers(0, 500).flatmap(lambda least: st.tuples(st.just(least), st.integers(max(1, least), 1000)))
TOLERANCE = 0.1


@pytest.mark.parametrize(
    ("rate", "drain", "window", "target"),
    [
        (150, 300, 1024, 45_000),
        (0.5, 300, 1024, 1024),  # a slow replica holds more than it does in the time
        (33.4, 10, 64, 334),
        (33.39, 10, 64, 333),  # rounded so that the goal is kept
        (0.29, 100, 1, 29),  # as the chart multiplies, and not as floats do
        (0.1, 1, 1, 1),
    ],
)
def test_the_target(rate, drain, window, target):
    assert target_images(rate, drain, window) == target


@pytest.mark.parametrize(
    ("queued", "running", "least", "most", "expected"),
    [
        (0, 0, 0, 10, 0),
        (0, 0, 2, 10, 2),
        (1, 0, 0, 10, 1),
        (0, 1, 0, 10, 1),  # what a dead worker held wakes a fleet at zero
        (10_000, 0, 0, 10, 1),
        (10_000, 1, 0, 10, 2),
        (9_000, 1_000, 0, 10, 1),
        (95_000, 1_024, 0, 10, 10),
        (1_000_000, 0, 0, 10, 10),
        (1_000_000, 0, 0, 1000, 100),
    ],
)
def test_replicas(queued, running, least, most, expected):
    found = replicas(
        queued, running, images_per_second=100, drain_seconds=100, window_images=1024, least=least, most=most
    )
    assert found == expected


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: 0} for name in ("images_per_second", "drain_seconds", "window_images", "most")),
        *({name: -1} for name in ("queued", "running", "images_per_second", "drain_seconds", "least")),
        {"images_per_second": math.nan},
        {"drain_seconds": math.inf},
        {"least": 11},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    given = {"queued": 1, "running": 1, "images_per_second": 1.0, "drain_seconds": 1.0, "window_images": 1}
    with pytest.raises(ValueError, match=r"must be positive|expected"):
        replicas(**{**given, "least": 0, "most": 10, **wrong})


def wanted(queued, running, one, fleet):
    rate, drain, window = one
    return replicas(
        queued,
        running,
        images_per_second=rate,
        drain_seconds=drain,
        window_images=window,
        least=fleet[0],
        most=fleet[1],
    )


ONE = st.tuples(RATES, SECONDS, WINDOWS)


@given(IMAGES, IMAGES, IMAGES, ONE, FLEETS)
def test_more_images_never_ask_for_fewer_replicas(queued, running, more, one, fleet):
    assert wanted(queued + more, running, one, fleet) >= wanted(queued, running, one, fleet)
    assert wanted(queued, running + more, one, fleet) >= wanted(queued, running, one, fleet)


@given(IMAGES, IMAGES, ONE, FLEETS)
def test_its_bounds(queued, running, one, fleet):
    found = wanted(queued, running, one, fleet)
    assert fleet[0] <= found <= fleet[1]
    assert found > 0 or queued + running == 0


@given(IMAGES, IMAGES, ONE)
def test_a_chunk_that_is_begun_changes_nothing(queued, running, one):
    assert wanted(queued, running, one, (0, 1000)) == wanted(queued + running, 0, one, (0, 1000))


@given(ONE, st.integers(1, 1000))
def test_full_windows_never_ask_for_more_replicas_than_hold_them(one, present):
    assert wanted(0, present * one[2], one, (0, 10**9)) <= present


@given(IMAGES, ONE)
def test_the_goal_is_kept_unless_a_window_is_larger(queued, one):
    rate, drain, window = one
    found = wanted(queued, 0, one, (0, 10**12))
    assert queued <= found * max(rate * drain, window) * (1 + 1e-9)


def hpa(value, target_average, present, tolerance=TOLERANCE):
    """Kubernetes' `GetExternalPerPodMetricReplicas`, of a whole number and its target as Quantities (thousandths)."""
    usage, target = value * 1000, target_average * 1000
    ratio = float(usage) / (float(target) * float(present))
    return present if abs(1.0 - ratio) <= tolerance else math.ceil(float(usage) / float(target))


def keda(value, target, present, fleet):
    """KEDA's operator decides between none and one; the HPA that it makes, with at least one, all else."""
    least, most = fleet
    if present == 0:
        return max(least, 1) if value > 0 else least
    if value <= 0:
        return least  # after the cool-down
    return max(least, 1, min(hpa(value, target, present), most))


@given(IMAGES, IMAGES, ONE, FLEETS, st.integers(1, 1000))
def test_kubernetes_computes_the_same(queued, running, one, fleet, present):
    """Where it does not, the fleet is within the tolerance; and to zero and from zero it goes by the same number."""
    outstanding, target = queued + running, target_images(*one)
    mine = wanted(queued, running, one, fleet)
    theirs = keda(outstanding, target, present, fleet)
    within_tolerance = abs(1 - outstanding / (target * present)) <= TOLERANCE * (1 + 1e-9)
    assert theirs == mine or (within_tolerance and theirs == max(fleet[0], 1, min(present, fleet[1])))
    assert (keda(outstanding, target, 0, fleet) > 0) == (mine > 0)
