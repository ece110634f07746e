"""Images that kill, fill or stop whoever decodes them: 12."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from classifleet.worker.cores import usable_cores
from tests.chaos.arena import SABOTEUR, Arena
from tests.chaos.conftest import Scenario
from tests.chaos.groups import limited_group
from tests.chaos.hostile import harmful
from tests.support import wait_until

CGROUPS = Path("/sys/fs/cgroup")
GROUP_BYTES = 1500 << 20
WORKERS = 2
NAMED_SECONDS = 240.0
DECODER = (*SABOTEUR, "decoder")


@pytest.mark.chaos("12", "a decoder that segfaults, hoards, hangs", within=120)  # in-flight work waits for threads
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("part", "harm", "code"), [("a", "segfault", "poison"), ("b", "hoard", "poison"), ("c", "hang", "internal")]
)
def test_decoder(scenario: Scenario, part: str, harm: str, code: str) -> None:
    """The culprit is named; its neighbours and whoever shared the process are classified.

    One image more hangs than a worker has threads that decode: the last of them hangs the thread that was started in
    the place of a lost one, and the neighbours must get one, too.
    """
    culprits = [f"{harm}/{n}" for n in range(3, 4 + (usable_cores() if harm == "hang" else 0))]
    settings = {"SANDBOX_MEMORY_BYTES": str(512 << 20), "SANDBOX_SECONDS": "3", "DECODE_TIMEOUT_SECONDS": "15"}
    expected = dict.fromkeys(culprits, code)
    with memory_group(harm) as group, scenario.arena(part=part, settings=settings, expected=expected) as it:
        command = (*group, *DECODER)
        it.start(WORKERS, command=command)
        with it.load(backlog=60):
            name = it.place.web.add(f"{harm}.jpg", harmful(it.place.photo().read_bytes(), harm))
            refs = {f"{harm}/{n}": it.place.ref() for n in range(len(culprits) + 7)}
            items = list((refs | dict.fromkeys(culprits, it.place.web.url(name))).items())
            it.inject(lambda: it.submit(harm, items, size=len(items)))
            job = it.fleet.job(harm)
            wait_until(
                lambda: supervised(it, command) and job.progress().finished, "the culprit to be named", NAMED_SECONDS
            )


def supervised(it: Arena, command: tuple[str, ...]) -> bool:
    """Keep two workers running, as Kubernetes does. Not on a thread: they would die with it (PR_SET_PDEATHSIG)."""
    missing = WORKERS - sum(worker.process.running() for worker in it.workers)
    if missing:
        it.start(missing, command=command, wait=False)
    return True


@contextmanager
def memory_group(harm: str) -> Iterator[tuple[str, ...]]:
    """What starts a command under a memory limit of the kernel's, for the hoarder, which would fill the machine."""
    if harm != "hoard":
        yield ()
        return
    try:
        group = limited_group(CGROUPS, f"chaos-{os.getpid()}", GROUP_BYTES)
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    script = f'echo $$ > {group}/cgroup.procs; exec "$@"'
    try:
        yield ("sh", "-c", script, "sh")
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group's processes to end")
        group.rmdir()
