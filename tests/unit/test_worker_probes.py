from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from classifleet.worker import memory
from classifleet.worker.inflight import InFlight
from classifleet.worker.probes import Pulse, Vitals, live, problems
from tests.support import wait_until

WELL = Vitals()


@pytest.mark.parametrize(
    ("vitals", "says"),
    [
        (WELL, None),
        (replace(WELL, device_alive=False), "the device thread has died"),
        (replace(WELL, device_alive=False, device_lost="ECC"), "the device is lost: ECC"),
        (replace(WELL, loop_alive=False), "the event loop's thread has died"),
        (replace(WELL, leases_alive=False), "the thread that renews leases has died"),
        (replace(WELL, forward_seconds=10), None),
        (replace(WELL, forward_seconds=11), "a forward pass has been running for 11 s"),
        (replace(WELL, loop_still_seconds=11), "the event loop has stood still for 11 s"),
        (replace(WELL, consumer_still_seconds=11), "the consumer has stood still for 11 s"),
        (replace(WELL, chunks_still_seconds=110), None),
        (replace(WELL, chunks_still_seconds=111), "chunks are at work and none has ended for 111 s"),
        (replace(WELL, chunks_still_seconds=111, away={"ledger": 50.0}), None),
        (replace(WELL, decoders=2, decoders_lost=8), None),
        (replace(WELL, decoders=2, decoders_lost=9), "9 decode threads are stuck in their images"),
    ],
)
def test_what_only_a_restart_ends(vitals: Vitals, says: str | None) -> None:
    assert problems(vitals, stuck_seconds=10, chunk_seconds=100) == ([says] if says else [])
    health = live(vitals, stuck_seconds=10, chunk_seconds=100)
    assert health.ok is (says is None)
    assert health.body["state"] == ("stuck" if says else "live")


def test_a_worker_that_starts_is_live() -> None:
    assert live(None, stuck_seconds=1, chunk_seconds=1).ok


def test_the_pulse_of_a_loop_that_is_blocked_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classifleet.worker.probes.PULSE_SECONDS", 0.001)
    loop, blocked, go_on = asyncio.new_event_loop(), threading.Event(), threading.Event()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    pulse = Pulse(loop, thread)

    def block() -> None:
        blocked.set()
        go_on.wait(10)

    loop.call_soon_threadsafe(block)
    assert blocked.wait(10)
    wait_until(lambda: pulse.still_seconds() > 0.1, "the pulse to be missed")
    go_on.set()
    wait_until(lambda: pulse.still_seconds() < 0.1, "the pulse")
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert not pulse.alive()


def test_what_is_at_work() -> None:
    in_flight = InFlight()
    assert in_flight.wait_idle(0)
    assert in_flight.still_seconds() == 0
    with in_flight.one():
        assert in_flight.count == 1
        assert not in_flight.wait_idle(0)
        wait_until(lambda: in_flight.still_seconds() > 0, "time to pass")
    assert in_flight.wait_idle(0)


@pytest.mark.parametrize(
    ("setting", "cgroup", "limit"), [(0, None, None), (0, 1000, 900), (500, 1000, 500), (500, None, 500)]
)
def test_where_a_worker_drains(setting: int, cgroup: int | None, limit: int | None) -> None:
    assert memory.limit_bytes(setting, cgroup) == limit


@pytest.mark.parametrize(("text", "limit"), [("max\n", None), ("1048576\n", 1 << 20), (str(2**63 - 4096), None)])
def test_the_limit_of_a_cgroup(tmp_path: Path, text: str, limit: int | None) -> None:
    file = tmp_path / "memory.max"
    file.write_text(text)
    assert memory.cgroup_limit((str(tmp_path / "none"), str(file))) == limit
    assert memory.cgroup_limit(()) is None
