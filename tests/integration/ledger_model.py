"""What must be true of the ledger whatever was done to it: the model that the state machine's rules act on."""

from __future__ import annotations

from dataclasses import dataclass, field

from classifleet.ledger import Begin, Lease, Put
from tests.fixtures_ledger import Bench, undocumented

QUEUES = {"bulk": "classify.default.bulk", "rest": "classify.default.bulk", "talk": "classify.default.interactive"}
ROOM = 100
WINDOW = 3
Name = tuple[str, str]


@dataclass
class Chunk:
    """What must be true of a chunk."""

    n: int
    state: str = "queued"
    attempt: int = 0
    deaths: int = 0
    owner: str = ""
    expired: bool = False
    mark: str = ""
    lone_deaths: list[str] = field(default_factory=list)
    winner: int = -1

    def free(self, state: str) -> None:
        """Into a state in which nobody holds it."""
        self.state, self.owner, self.expired, self.mark = state, "", False, ""


@dataclass
class Job:
    """What must be true of a job."""

    state: str = "open"
    finished: bool = False


class Model:
    """Jobs and chunks as they must be, and the comparison with the ledger on `bench`."""

    bench: Bench
    jobs: dict[str, Job]
    chunks: dict[Name, Chunk]

    # --- what must come of a call

    def _complete(self, job: str) -> bool:
        return all(c.state == "done" for (j, _), c in self.chunks.items() if j == job)

    def _expected_put(self, job: str, chunk: str) -> Put:
        known, mine = self.jobs.get(job), self.chunks.get((job, chunk))
        if mine:
            return {"queued": Put.QUEUED, "leased": Put.LEASED, "parked": Put.PARKED, "done": Put.DONE}[mine.state]
        if known is None:
            return Put.QUEUED
        if known.state == "cancelled":
            return Put.CANCELLED
        if known.state == "abandoned" and self._complete(job):
            return Put.ABANDONED
        if known.state not in ("open", "abandoned"):
            return Put.CONFLICT
        queued = [c for (j, _), c in self.chunks.items() if j == job and c.state == "queued"]
        return Put.WINDOW if len(queued) >= WINDOW else Put.QUEUED

    def _runnable(self, queue: str) -> list[Name]:
        return [
            (job, chunk)
            for (job, chunk), mine in self.chunks.items()
            if mine.state == "queued" and QUEUES[job] == queue and self.jobs[job].state != "cancelled"
        ]

    def _refusal(self, name: Name, worker: str) -> Begin | None:
        mine = self.chunks[name]
        if mine.state == "done":
            return Begin.DONE
        if self.jobs[name[0]].state == "cancelled":
            return Begin.CANCELLED
        if mine.state == "parked":
            return Begin.PARKED
        if mine.state == "leased":
            return Begin.JOIN if mine.owner == worker else Begin.HELD
        return None

    def _holds(self, worker: str, lease: Lease) -> Chunk | None:
        mine = self.chunks[lease.job, lease.chunk]
        held = mine.state == "leased" and mine.owner == worker and mine.attempt == lease.attempt
        return mine if held else None

    def _end(self, job: str) -> None:
        known = self.jobs[job]
        complete = all(c.state == "done" for (j, _), c in self.chunks.items() if j == job)
        if complete and known.state != "open" and not known.finished and job != "bulk":  # a sink needs the finaliser
            known.finished = True
            known.state = "done" if known.state == "sealed" else known.state

    # --- the comparison

    def check(self) -> None:
        """The ledger is as the model says."""
        for queue in set(QUEUES.values()):
            self._check_queue(queue)
        for job, known in self.jobs.items():
            self._check_job(job, known)
        names = self.bench.names()
        assert undocumented(names) == set()
        alive = {f"chunk:{job}:{chunk}" for (job, chunk), mine in self.chunks.items() if mine.state != "done"}
        assert {name for name in names if name.startswith("chunk:")} == alive
        room = int(self.bench.redis.get(self.bench.keys.shared("room")) or 0)
        assert room == ROOM * len(alive)

    def _is_cancelled(self, member: bytes) -> bool:
        return self.jobs[member.decode().split("/")[0]].state == "cancelled"

    def _check_queue(self, queue: str) -> None:
        redis, key = self.bench.redis, lambda part: self.bench.keys.queue(queue, part)
        here = {name: mine for name, mine in self.chunks.items() if QUEUES[name[0]] == queue}
        images = {name: int(value) for name, value in redis.hgetall(key("images")).items() if name != b"turn"}
        for state in ("queued", "leased", "parked", "done"):
            expected = {f"{j}/{c}".encode() for (j, c), mine in here.items() if mine.state == state}
            if state != "done":
                refused = {n for n in expected if state == "queued" and self._is_cancelled(n)}  # may have left
                assert expected - refused <= set(redis.zrange(key(state), 0, -1)) <= expected
            assert images.get(state.encode(), 0) == sum(m.n for m in here.values() if m.state == state)
        waiting = {job.encode() for job, _ in self._runnable(queue)}
        assert set(redis.zrange(key("ring"), 0, -1)) == waiting
        held = sorted(f"{j}/{c}".encode() for (j, c), mine in here.items() if mine.state == "leased")
        assert sorted(redis.hgetall(key("grants")).values()) == held

    def _check_job(self, job: str, known: Job) -> None:
        mine = {chunk: c for (j, chunk), c in self.chunks.items() if j == job}
        queued = {chunk for chunk, c in mine.items() if c.state == "queued"}
        done = {chunk: c for chunk, c in mine.items() if c.state == "done"}
        fields = self.bench.job(job)
        assert fields["state"] == known.state
        assert ("finished_at" in fields) is known.finished
        assert int(fields["accepted"]) == sum(c.n for c in mine.values())
        assert int(fields["done"]) == int(fields["ok"]) == sum(c.n for c in done.values())
        assert (int(fields["chunks"]), int(fields["queued"])) == (len(mine), len(queued))
        assert set(self.bench.run(self.bench.ledger.pending(job, 0, 100))) == queued
        log = self.bench.run(self.bench.ledger.log(job, 0, 100))
        assert sorted(log) == sorted(done)
        open_jobs = {name.decode() for name in self.bench.redis.zrange(self.bench.keys.shared("open"), 0, -1)}
        assert (job in open_jobs) is (known.state == "open")

    def check_end(self) -> None:
        """Every image has its record."""
        assert {mine.state for mine in self.chunks.values()} == {"done"}
        assert all(known.finished for known in self.jobs.values())
        for (job, chunk), mine in self.chunks.items():
            part = self.bench.run(self.bench.ledger.part(job, chunk))
            assert part is not None
            assert (part.attempt, part.images) == (mine.winner, mine.n)
            records = self.bench.run(self.bench.ledger.records(job, chunk))
            assert records == (
                {} if job == "bulk" else {f"{chunk}/{index}": b"%d" % mine.winner for index in range(mine.n)}
            )
        assert int(self.bench.redis.get(self.bench.keys.shared("room"))) == 0
