"""Records become final once, whatever is away at that moment: on the real ledger, with a sink that can go away."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from classifleet.config import ErrorCode, ImageError, Item, Payload, StorageUnavailable
from classifleet.config.claims import Claims
from classifleet.config.storage import FolderStore
from classifleet.ledger import Commit, Lease
from classifleet.worker import outages as outages_module
from classifleet.worker import sink as sink_module
from classifleet.worker.commits import Committer
from classifleet.worker.leases import LeaseKeeper
from classifleet.worker.outages import Interrupted, Outages
from classifleet.worker.records import failed_records
from classifleet.worker.sink import Sinks, part_name
from tests.conftest import SettingsFactory
from tests.fixtures_ledger import QUEUE, Bench
from tests.support import wait_until


class Store(FolderStore):
    """A folder that is away while told so."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.away = threading.Event()
        self.tried = 0

    def put(self, name: str, data: bytes) -> None:
        self.tried += 1
        if self.away.is_set():
            raise StorageUnavailable("503")
        super().put(name, data)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store(tmp_path)
    monkeypatch.setattr(sink_module, "open_store", lambda *_: store)
    monkeypatch.setattr(sink_module, "WRITE_ATTEMPTS", 1)
    monkeypatch.setattr(outages_module, "LONGEST_PAUSE_SECONDS", 0.01)
    return store


@pytest.fixture
def outages() -> Outages:
    return Outages()


@pytest.fixture
def interrupt() -> threading.Event:
    return threading.Event()


@pytest.fixture
def committer(bench: Bench, settings: SettingsFactory, outages: Outages, interrupt: threading.Event) -> Committer:
    given = settings(sink_allow=["s3://b"], chunks_in_flight=2)
    return Committer(
        ledger=bench.ledger,
        runner=bench.runner,
        sinks=Sinks(given),
        outages=outages,
        claims=Claims(given),
        settings=given,
        interrupt=interrupt,
    )


def begun(bench: Bench, chunk: str, sink: str | None = "s3://b") -> tuple[Payload, Lease]:
    payload = Payload(
        job="j", chunk=chunk, items=[Item(id="a", ref="x"), Item(id="b", ref="y")], models=["m"], sink=sink
    )
    bench.put("j", chunk, payload=payload.encode())
    return payload, bench.begin("j", chunk)


def name_of(work: tuple[Payload, Lease]) -> str:
    payload, lease = work
    return part_name(payload.chunk, lease.attempt, lease.grant)


def commit(committer: Committer, work: tuple[Payload, Lease], code: ErrorCode = ErrorCode.UNDECODABLE) -> Commit:
    payload, lease = work
    records = failed_records(payload, ImageError(code), attempt=lease.attempt, worker="w1")
    return committer.commit(payload, lease, records, QUEUE, "bulk")


def test_records_are_kept_while_the_sink_is_away(
    bench: Bench, committer: Committer, store: Store, outages: Outages
) -> None:
    work = begun(bench, "0")
    store.away.set()
    with ThreadPoolExecutor(1) as pool:
        committing = pool.submit(commit, committer, work)
        wait_until(lambda: store.tried > 2, "tries")
        assert set(outages.away()) == {"sink"}
        with pytest.raises(StorageUnavailable, match="many chunks wait"):
            commit(committer, begun(bench, "1"))
        store.away.clear()
        assert committing.result(10) is Commit.COMMITTED
    assert outages.away() == {}
    assert (store.root / "j" / name_of(work)).read_text().count("\n") == 2


def test_a_process_that_ends_does_not_keep_them(
    bench: Bench, committer: Committer, store: Store, interrupt: threading.Event
) -> None:
    work = begun(bench, "0")
    store.away.set()
    with ThreadPoolExecutor(1) as pool:
        committing = pool.submit(commit, committer, work)
        wait_until(lambda: store.tried > 1, "tries")
        interrupt.set()
        with pytest.raises(Interrupted):
            committing.result(10)
    assert bench.counts("j")[3] == 0


def test_the_part_of_a_late_commit_is_deleted(bench: Bench, committer: Committer, store: Store) -> None:
    payload, first = begun(bench, "0")
    bench.run(bench.ledger.hand_back("w1", [("j", "0", first.attempt)]))
    second = bench.begin("j", "0", "w2")
    assert commit(committer, (payload, second)) is Commit.COMMITTED
    assert commit(committer, (payload, first)) is Commit.LATE
    assert [path.name for path in (store.root / "j/parts").iterdir()] == [Path(name_of((payload, second))).name]
    assert commit(committer, (payload, second)) is Commit.REPEATED
    assert [path.name for path in (store.root / "j/parts").iterdir()] == [Path(name_of((payload, second))).name]


def test_a_part_is_not_that_of_an_earlier_job(bench: Bench, committer: Committer, store: Store) -> None:
    """The job was deleted and its id used again for other images, and the first one's worker comes back late."""
    earlier = begun(bench, "0")
    bench.redis.flushdb()
    payload = Payload(job="j", chunk="0", items=[Item(id="c", ref="z")], models=["m"], sink="s3://b")
    bench.put("j", "0", payload=payload.encode(), digest="0f" * 8)
    work = (payload, bench.begin("j", "0"))
    assert earlier[1].attempt == work[1].attempt
    assert commit(committer, work) is Commit.COMMITTED
    assert commit(committer, earlier) is Commit.GONE
    assert json.loads((store.root / "j" / name_of(work)).read_text())["id"] == "c"


def test_the_same_attempt_of_two_workers_has_two_parts(bench: Bench, committer: Committer, store: Store) -> None:
    """A failover of Redis forgot the first worker's lease, and the second was granted the same attempt."""
    payload, first = begun(bench, "0")
    bench.redis.flushdb()
    begun(bench, "0")
    bench.run(bench.ledger.hand_back("w1", [("j", "0", 1)]))
    bench.redis.hset(bench.keys.chunk("j", "0"), "attempt", 0)
    second = bench.begin("j", "0", "w2")
    assert second.attempt == first.attempt
    assert commit(committer, (payload, first)) is Commit.COMMITTED
    assert commit(committer, (payload, second), ErrorCode.NOT_FOUND) is Commit.LATE
    part = bench.run(bench.ledger.part("j", "0"))
    assert part is not None
    assert part.name == name_of((payload, first))
    assert ErrorCode.UNDECODABLE in (store.root / "j" / part.name).read_text()
    assert [path.name for path in (store.root / "j/parts").iterdir()] == [Path(part.name).name]


def test_the_part_of_a_job_that_is_gone_stays(bench: Bench, committer: Committer, store: Store) -> None:
    """A commit whose answer was lost is repeated after its job was deleted: the manifest names this part."""
    work = begun(bench, "c")
    bench.seal("j")
    assert commit(committer, work) is Commit.COMMITTED
    bench.run(bench.ledger.finish("j"))
    assert bench.run(bench.ledger.delete("j")) == 1
    assert commit(committer, work) is Commit.GONE
    assert [path.name for path in (store.root / "j/parts").iterdir()] == [Path(name_of(work)).name]


def test_faults_of_ours_become_dead_letters(bench: Bench, committer: Committer) -> None:
    assert commit(committer, begun(bench, "0", sink=None), ErrorCode.INTERNAL) is Commit.COMMITTED
    assert commit(committer, begun(bench, "1", sink=None), ErrorCode.NOT_FOUND) is Commit.COMMITTED
    keys: list[str] = bench.runner.run(bench.ledger.dead_letters(0, 10))
    assert sorted(keys) == ["j.0.0", "j.0.1"]
    letter = bench.run(bench.ledger.dead_letter("j.0.1"))
    assert letter["code"] == "internal"
    assert json.loads(letter["letter"])["item"] == {"id": "b", "ref": "y"}


def test_what_is_given_back_is_queued_again_without_a_death(bench: Bench, settings: SettingsFactory) -> None:
    keeper = LeaseKeeper(bench.ledger, bench.runner, "w1", 60)
    for chunk in ("0", "1", "2"):
        _, lease = begun(bench, chunk)
        keeper.add(("j", chunk, lease.attempt))
    keeper.give_back(("j", "0", 1))
    assert bench.images() == (2, 4, 0)
    keeper.give_all_back()
    assert bench.images() == (6, 0, 0)
    assert bench.run(bench.ledger.chunk("j", "2"))["deaths"] == "0"


def test_what_could_not_be_given_back_is_given_back_later(
    bench: Bench, settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from classifleet.config import LedgerUnavailable

    keeper = LeaseKeeper(bench.ledger, bench.runner, "w1", 0.03)
    begun(bench, "0")
    keeper.add(("j", "0", 1))

    def away(_: object) -> None:
        raise LedgerUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(bench.runner, "run", away)
        keeper.give_back(("j", "0", 1))
    assert bench.images() == (0, 2, 0)
    keeper.start()
    wait_until(lambda: bench.images() == (2, 0, 0), "the next renewal")
    assert keeper.alive()
    keeper.close()
