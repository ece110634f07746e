"""The protocol against a model of it: two jobs, three workers, and everything that can go wrong between them.

`LEDGER_EXAMPLES=2000` in the environment looks for longer.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from classifleet.ledger import Begin, Commit, Lease, Put, Tally
from classifleet.ledger.values import MANUAL_ATTEMPT
from tests.fixtures_ledger import LONG_MS, REQUEST, Bench, digest, head
from tests.integration.ledger_model import QUEUES, ROOM, WINDOW, Chunk, Job, Model, Name

EXAMPLES = int(os.environ.get("LEDGER_EXAMPLES", "60"))
STEPS = 60
MOST_ROUNDS = 50
CHUNKS = tuple(str(index) for index in range(4))
JOBS = st.sampled_from(sorted(QUEUES))
WORKERS = st.sampled_from(["w1", "w2", "w3"])
LEASE_MS = st.sampled_from([0, LONG_MS])  # a lease of 0 ms has run out; another never does
INDEX = st.integers(0, 1000)


class Machine(Model, RuleBasedStateMachine):
    bench: Bench

    @initialize()
    def begin_empty(self) -> None:
        self.bench.redis.flushdb()
        self.jobs: dict[str, Job] = {}
        self.chunks: dict[Name, Chunk] = {}
        self.messages: list[Name] = []
        self.leases: list[tuple[str, Lease]] = []  # all that were ever granted: zombies never forget
        self.grants = itertools.count()

    # --- producers

    @rule(job=JOBS, chunk=st.sampled_from(CHUNKS), seal=st.sampled_from([False, False, False, True]))
    def put(self, job: str, chunk: str, seal: bool) -> None:
        expected = self._expected_put(job, chunk)
        reply = self.bench.run(
            self.bench.ledger.put(
                job, header=head(queue=QUEUES[job], **({"sink": "file:///x"} if job == "bulk" else {})),
                request=REQUEST, chunk=chunk, images=int(chunk) + 1, payload=b'{"items":[]}', digest=digest(chunk),
                window=WINDOW, seal=seal, room=ROOM,
            )
        )  # fmt: skip
        assert reply.outcome is expected
        if expected in (Put.CONFLICT, Put.CANCELLED, Put.ABANDONED, Put.WINDOW):
            return
        known, over = self.jobs.setdefault(job, Job()), self._complete(job)
        if (job, chunk) not in self.chunks:
            self.chunks[job, chunk] = Chunk(int(chunk) + 1)
            self.messages.append((job, chunk))
        if known.state == "abandoned" and not over:
            known.state = "open"
        if seal and known.state == "open":
            known.state = "sealed"
            self._end(job)  # one that was cancelled is ended by its finaliser alone

    @rule(job=JOBS)
    def cancel(self, job: str) -> None:
        known = self.jobs.get(job)
        expected = "UNKNOWN" if known is None else "FINISHED" if known.finished else "CANCELLED"
        assert self.bench.run(self.bench.ledger.cancel(job)) == expected
        if known and expected == "CANCELLED":
            known.state = "cancelled"

    # --- workers

    @precondition(lambda self: self.messages)
    @rule(index=INDEX, worker=WORKERS, lease_ms=LEASE_MS, twice=st.booleans(), lost=st.booleans())
    def receive(self, index: int, worker: str, lease_ms: int, twice: bool, lost: bool) -> None:
        """A message arrives, perhaps not for the last time; perhaps the ledger's answer is lost."""
        name = self.messages[index % len(self.messages)]
        if not twice:
            self.messages.remove(name)
        ask: dict[str, Any] = {"queue": QUEUES[name[0]], "grant": f"g{next(self.grants)}", "lease_ms": lease_ms}
        runnable, refusal = self._runnable(QUEUES[name[0]]), self._refusal(name, worker)
        lease = self.bench.begin(*name, worker, **ask)
        if lost:
            again = self.bench.begin(*name, worker, **ask)
            assert replace(again, waited_ms=lease.waited_ms) == lease
        if lease.outcome is not Begin.RUN:
            assert (lease.outcome, runnable) == (refusal, [])
            return
        mine = self.chunks[lease.job, lease.chunk]
        assert (lease.job, lease.chunk) in runnable
        if name[0] == "talk" and refusal is None:
            assert (lease.job, lease.chunk) == name
        assert (lease.attempt, lease.deaths, lease.lone_deaths) == (
            mine.attempt + 1,
            mine.deaths,
            tuple(mine.lone_deaths),
        )
        mine.free("leased")
        mine.owner, mine.attempt, mine.expired = worker, lease.attempt, lease_ms == 0
        self.leases.append((worker, lease))

    @precondition(lambda self: self.messages)
    @rule(index=INDEX, worker=WORKERS, twice=st.booleans())
    def begin_and_end(self, index: int, worker: str, twice: bool) -> None:
        """A worker ends before it hears what it was granted, and takes it back; perhaps its call comes once more."""
        name = self.messages[index % len(self.messages)]
        ask: dict[str, Any] = {"queue": QUEUES[name[0]], "grant": f"g{next(self.grants)}"}
        lease = self.bench.begin(*name, worker, **ask)
        back = self.bench.run(self.bench.ledger.revoke(ask["queue"], ask["grant"], keep_ms=LONG_MS))
        assert back == ([(lease.job, lease.chunk)] if lease.outcome is Begin.RUN else [])
        for job, chunk in back:
            self.chunks[job, chunk].attempt += 1
        if twice:
            assert self.bench.begin(*name, worker, **ask).outcome is Begin.GONE

    @precondition(lambda self: self.leases)
    @rule(index=INDEX, lease_ms=LEASE_MS)
    def renew(self, index: int, lease_ms: int) -> None:
        worker, lease = self.leases[index % len(self.leases)]
        mine = self._holds(worker, lease)
        names = [(lease.job, lease.chunk, lease.attempt), ("x", "y", 1)]
        assert self.bench.run(self.bench.ledger.renew(worker, names, lease_ms=lease_ms)) == [mine is not None, False]
        if mine:
            mine.expired = lease_ms == 0

    @precondition(lambda self: self.leases)
    @rule(index=INDEX, image=st.sampled_from(["", "a", "b"]))
    def mark(self, index: int, image: str) -> None:
        worker, lease = self.leases[index % len(self.leases)]
        mine = self._holds(worker, lease)
        call = self.bench.ledger.mark(lease.job, lease.chunk, worker, lease.attempt, image)
        assert self.bench.run(call) is (mine is not None)
        if mine:
            mine.mark = image

    @precondition(lambda self: self.leases)
    @rule(index=INDEX)
    def hand_back(self, index: int) -> None:
        worker, lease = self.leases[index % len(self.leases)]
        mine, name = self._holds(worker, lease), (lease.job, lease.chunk)
        back = self.bench.run(self.bench.ledger.hand_back(worker, [(*name, lease.attempt)] * 2))
        assert back == ([name] if mine else [])
        self.messages += back
        if mine:
            mine.free("queued")

    @precondition(lambda self: self.leases)
    @rule(index=INDEX)
    def park(self, index: int) -> None:
        worker, lease = self.leases[index % len(self.leases)]
        mine = self._holds(worker, lease)
        call = self.bench.ledger.park(lease.job, lease.chunk, worker, lease.attempt)
        assert self.bench.run(call) is (mine is not None)
        if mine:
            mine.free("parked")

    @precondition(lambda self: self.leases)
    @rule(index=INDEX)
    def commit(self, index: int) -> None:
        """Any lease that was ever granted: most of these commits are late, or repeated."""
        _, lease = self.leases[index % len(self.leases)]
        self._commit(lease.job, lease.chunk, lease.attempt)

    def _commit(self, job: str, chunk: str, attempt: int) -> None:
        mine = self.chunks[job, chunk]
        expected = Commit.COMMITTED
        if mine.state == "done":
            expected = Commit.REPEATED if attempt == mine.winner else Commit.LATE
        records = [(f"{chunk}/{index}", b"%d" % attempt) for index in range(mine.n)]
        sink = job == "bulk"
        outcome, _ = self.bench.commit(
            job,
            chunk,
            attempt,
            tally=Tally(ok=mine.n),
            part=f"p{attempt}" if sink else "",
            records=() if sink else records,
        )
        assert outcome is expected
        if expected is Commit.COMMITTED:
            mine.free("done")
            mine.winner = attempt
            self._end(job)

    # --- the reconciler, and the broker

    @rule(queue=st.sampled_from(sorted(set(QUEUES.values()))), limit=st.integers(1, 5))
    def expire(self, queue: str, limit: int) -> None:
        dead = {n for n, c in self.chunks.items() if c.state == "leased" and c.expired and QUEUES[n[0]] == queue}
        back = self.bench.run(self.bench.ledger.expire_leases(queue, limit=limit))
        assert len(set(back)) == len(back) == min(limit, len(dead))
        assert set(back) <= dead
        for name in back:
            mine = self.chunks[name]
            mine.deaths += 1
            mine.lone_deaths += [mine.mark] if mine.mark else []
            mine.free("queued")
        self.messages += back

    @precondition(lambda self: self.messages)
    @rule(index=INDEX)
    def lose(self, index: int) -> None:
        del self.messages[index % len(self.messages)]

    @rule()
    def publish_lost(self) -> None:
        self.messages += [name for name, mine in self.chunks.items() if mine.state == "queued"]

    @rule()
    def unpark(self) -> None:
        for queue in set(QUEUES.values()):
            names = self.bench.run(self.bench.ledger.parked(queue, 100))
            assert set(names) == {n for n, c in self.chunks.items() if c.state == "parked" and QUEUES[n[0]] == queue}
            back = self.bench.run(self.bench.ledger.unpark(queue, [*names, *names]))
            assert sorted(back) == sorted(names)
            for name in names:
                self.chunks[name].free("queued")
            self.messages += back

    @rule(job=JOBS)
    def finalise(self, job: str) -> None:
        """Answers what was cancelled while it was queued, and ends the job."""
        known = self.jobs.get(job)
        if known and known.state == "cancelled" and not known.finished:
            for chunk in self.bench.run(self.bench.ledger.pending(job, 0, 100)):
                assert self.chunks[job, chunk].state == "queued"
                self._commit(job, chunk, MANUAL_ATTEMPT)
        complete = all(c.state == "done" for (j, _), c in self.chunks.items() if j == job)
        ends = known is not None and known.state != "open" and not known.finished and complete
        assert self.bench.run(self.bench.ledger.finish(job)) is ends
        if known and ends:
            known.finished = True
            known.state = "done" if known.state == "sealed" else known.state

    @rule()
    def abandon(self) -> None:
        silent = {job for job, known in self.jobs.items() if known.state == "open"}
        assert set(self.bench.run(self.bench.ledger.abandon(-1, 100))) == silent
        for job in silent:
            self.jobs[job].state = "abandoned"
            self._end(job)

    @invariant()
    def the_ledger_is_as_the_model_says(self) -> None:
        if hasattr(self, "chunks"):
            self.check()

    # --- the end: everything is answered

    def teardown(self) -> None:
        if not hasattr(self, "chunks") or not self.jobs:
            return
        self.abandon()
        for _ in range(MOST_ROUNDS):
            if all(known.finished for known in self.jobs.values()):
                break
            self.unpark()
            self._expire_all()
            for job in sorted(self.jobs):
                self.finalise(job)
            self.publish_lost()
            while self.messages:
                self.receive(0, "w9", LONG_MS, False, False)
            for _, lease in self.leases:
                if self.chunks[lease.job, lease.chunk].state != "done":
                    self._commit(lease.job, lease.chunk, lease.attempt)
        self.check()
        self.check_end()

    def _expire_all(self) -> None:
        for queue in set(QUEUES.values()):
            self.expire(queue, 100)


def test_the_ledger_keeps_its_promises_in_any_order(bench: Bench) -> None:
    machine = type("BoundMachine", (Machine,), {"bench": bench})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
