"""Each reason that /livez and /readyz may give is made to happen, in real processes.

That a device is lost is in test_worker_device.py, a forward pass that hangs in test_worker_stuck.py, loading models in
test_worker_command.py, a drain in test_worker_drain.py, and an exporter without Redis in test_exporter.py.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.support import wait_until
from tests.support.fleet import Worker, start_worker
from tests.support.tiny import add_tiny

COMMAND = (sys.executable, "-m", "tests.observability.sabotage")
REASONS = {
    "consumer_still": "the consumer has stood still for",
    "loop_still": "the event loop has stood still for",
    "leases_dead": "the thread that renews leases has died",
    "device_dead": "the device thread has died",
    "chunks_still": "chunks are at work and none has ended for",
}
LAST = {"loop_dead": "the event loop's thread has died"}


def problems(worker: Worker) -> list[str]:
    status, body = worker.probe("/livez")
    assert (status, body["state"]) == ((503, "stuck") if body["problems"] else (200, "live"))
    found: list[str] = body["problems"]
    return found


def all_seen(worker: Worker, missing: dict[str, str]) -> bool:
    """Whether the last of these has been said: what stands still does so for a while only."""
    for said in problems(worker):
        for order in [order for order, reason in missing.items() if said.startswith(reason)]:
            del missing[order]
    assert not missing, missing
    return True


def test_every_reason_why_a_worker_does_not_live(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "sabotage"
    os.mkfifo(pipe)
    monkeypatch.setenv("SABOTAGE", str(pipe))
    settings = {
        **{"MODEL_REPOSITORY": str(add_tiny(tmp_path / "models")), "LEASE_SECONDS": "3"},
        **{"STUCK_SECONDS": "1.5", "CHUNK_TIMEOUT_SECONDS": "1", "DRAIN_SECONDS": "0"},
    }
    log = tmp_path / "worker.log"
    with (
        start_worker(redis_url, log, settings=settings, command=(*COMMAND, "worker")) as worker,
        pipe.open("w") as orders,
    ):
        assert worker.probe("/readyz")[1]["state"] == "ready"
        wait_until(lambda: problems(worker) == [], "it to be well")
        for reasons in (REASONS, LAST):
            orders.writelines(f"{order}\n" for order in reasons)
            orders.flush()
            wait_until(partial(all_seen, worker, dict(reasons)), "every reason to be given", 20)
        worker.process.signal(signal.SIGKILL)  # it would try to end in order, without the parts that it needs for that


def test_why_an_exporter_does_not_live(redis_url: str, tmp_path: Path) -> None:
    with start_worker(
        redis_url, tmp_path / "exporter.log", settings={}, command=(*COMMAND, "exporter"), wait=False
    ) as exporter:
        dead = {"dead_threads": ["overview", "reconciler"]}
        wait_until(lambda: exporter.probe("/livez") == (503, dead), "its threads to be missed", 60)
        status, body = exporter.probe("/readyz")
        assert (status, body["state"]) == (503, "the ledger's Redis does not answer")
