"""Images that kill, fill or stop whoever decodes them: 12."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.arena import SABOTEUR, Arena
from tests.chaos.conftest import Scenario
from tests.chaos.hostile import harmful
from tests.support import wait_until

GROUP = Path("/sys/fs/cgroup/memory")
GROUP_BYTES = 1500 << 20
DECODER = (*SABOTEUR, "decoder")


@pytest.mark.chaos("12", "a decoder that segfaults, hoards, hangs")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("part", "harm", "code"), [("a", "segfault", "poison"), ("b", "hoard", "poison"), ("c", "hang", "internal")]
)
def test_decoder(scenario: Scenario, part: str, harm: str, code: str) -> None:
    """The culprit is named; its neighbours and whoever shared the process are classified."""
    settings = {"SANDBOX_MEMORY_BYTES": str(512 << 20), "SANDBOX_SECONDS": "3", "DECODE_TIMEOUT_SECONDS": "15"}
    culprit = f"{harm}/3"
    with (
        memory_group(harm) as command,
        scenario.arena(part=part, settings=settings, expected={culprit: code}) as it,
        supervised(it, 2, (*command, *DECODER)),
        it.load(backlog=60),
    ):
        items = [(f"{harm}/{n}", it.place.ref()) for n in range(8)]
        name = it.place.web.add(f"{harm}.jpg", harmful(it.place.photo().read_bytes(), harm))
        items[3] = (culprit, it.place.web.url(name))
        it.inject(lambda: it.submit(harm, items))
        wait_until(lambda: it.fleet.job(harm).progress().finished, "the culprit to be named", 240)


@contextmanager
def supervised(it: Arena, count: int, command: tuple[str, ...]) -> Iterator[None]:
    """Keep so many workers running, as Kubernetes does."""
    ended = threading.Event()
    it.start(count, command=command)

    def supervise() -> None:
        while not ended.wait(0.2):
            missing = count - sum(worker.process.running() for worker in it.workers)
            if missing > 0:
                it.start(missing, command=command, wait=False)

    thread = threading.Thread(target=supervise)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def memory_group(harm: str) -> Iterator[tuple[str, ...]]:
    """What starts a command under a memory limit of the kernel's, for the hoarder, which would fill the machine."""
    if harm != "hoard":
        yield ()
        return
    group = GROUP / f"chaos-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(GROUP_BYTES))
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    script = f'echo $$ > {group}/cgroup.procs; exec "$@"'
    try:
        yield ("sh", "-c", script, "sh")
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group's processes to end")
        group.rmdir()
