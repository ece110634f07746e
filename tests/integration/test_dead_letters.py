"""Dead letters through `Fleet`: found, tried again under a job of their own, dropped."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from classifleet.config import InvalidRequest, LedgerUnavailable, QueueFull
from classifleet.producer import AsyncFleet, Fleet
from classifleet.producer import _dead_letters as flows
from classifleet.producer.testing import InMemoryFleet
from tests.support.dead import OWNER, FailingWorker

SIGNED = "https://images.example/cat.jpg?signature=secret"


@pytest.fixture
def fleet(redis_url):
    with Fleet(redis_url) as fleet:
        yield fleet


@pytest.fixture
def worker(settings, redis_url):
    with FailingWorker(settings(namespace="default", broker_url=redis_url)) as worker:
        yield worker


def submit(fleet, job, refs, **options):
    return fleet.submit_many(refs, **{"models": "imagenet", "job_id": job, **options})


def payloads(worker, job):
    """What the chunks of a job ask for, in their order."""
    chunks = worker.run(worker.ledger.pending(job, 0, 1000))
    return [json.loads(worker.run(worker.ledger.chunk(job, chunk))["payload"]) for chunk in sorted(chunks)]


def test_a_letter_says_what_happened_and_never_more_than_a_record_may(fleet, worker):
    submit(fleet, "nightly", [("cat", SIGNED, {"owner": "7"})], models=["imagenet", "nsfw@1"], top_k=3, deadline=600)
    [key] = worker.fail("poison", died=2)
    [letter] = fleet.dead_letters()
    assert (letter.key, letter.job, letter.id, letter.code) == (key, "nightly", "cat", "poison")
    assert letter.ref == "https://images.example/cat.jpg?redacted"
    assert (letter.models, letter.meta, letter.deadline_seconds) == (("imagenet", "nsfw@1"), {"owner": "7"}, 600)
    assert letter.options["top_k"] == 3
    assert (letter.attempt, letter.worker, letter.message) == (3, OWNER, "it went wrong: poison")
    assert [(one.attempt, one.ended, one.worker) for one in letter.history] == [(1, "died", OWNER), (2, "died", OWNER)]
    assert abs(datetime.now(UTC) - letter.history[0].at) < timedelta(minutes=5)
    assert "secret" not in repr(letter) + json.dumps(letter.to_dict())


def test_letters_are_found_by_job_code_model_and_age_newest_first(fleet, worker):
    submit(fleet, "older", ["data:,a"], models="nsfw@2")
    worker.fail("model_failed", age=timedelta(hours=3))
    submit(fleet, "newer", ["data:,a", "data:,b"])
    worker.fail("internal")

    def jobs(**narrow):
        return [letter.job for letter in fleet.dead_letters(**narrow)]

    assert jobs() == ["newer", "newer", "older"]
    assert jobs(job="older") == jobs(code="model_failed") == jobs(model="nsfw") == jobs(model="nsfw@2") == ["older"]
    assert jobs(model="nsfw@1") == jobs(job="older", code="internal") == []
    assert jobs(since=timedelta(hours=1)) == ["newer"] * 2
    assert len(jobs(since=datetime.now(UTC) - timedelta(hours=4))) == 3
    assert jobs(limit=1) == ["newer"]
    with pytest.raises(InvalidRequest, match="no time zone"):
        fleet.dead_letters(since=datetime(2026, 1, 1))


def test_more_letters_than_a_page(fleet, worker, monkeypatch):
    monkeypatch.setattr(flows, "PAGE_LETTERS", 3)
    submit(fleet, "many", [f"data:,{n}" for n in range(10)], chunk_size=4)
    keys = worker.fail()
    assert sorted(letter.key for letter in fleet.dead_letters()) == sorted(keys)
    assert len(fleet.dead_letters(limit=7)) == 7
    outcome = fleet.requeue(fleet.dead_letters())
    assert sum(outcome.jobs.values()) == 10
    assert fleet.discard(fleet.dead_letters()) == 10
    assert fleet.dead_letters() == []


def test_a_requeue_is_a_new_job_with_the_same_request(fleet, worker, tmp_path):
    options = {"models": ["imagenet", "nsfw@1"], "top_k": 2, "scores": "all", "threshold": 0.25, "deadline": 60}
    refs = [("a", SIGNED, {"owner": "7"}), ("b", "data:,b")]
    submit(fleet, "nightly", refs, sink=f"file://{tmp_path}", **options)
    worker.fail()
    outcome = fleet.requeue(fleet.dead_letters())
    [job] = outcome.jobs
    assert outcome.jobs == {job: 2}
    assert job.startswith("nightly-requeue-")
    assert (outcome.before, outcome.skipped) == ({}, {})
    [payload] = payloads(worker, job)
    assert [(item["id"], item["ref"], item.get("meta")) for item in payload["items"]] == [
        ("a", SIGNED, {"owner": "7"}),
        ("b", "data:,b", None),
    ]
    assert (payload["models"], payload["deadline_seconds"]) == (["imagenet", "nsfw@1"], 60)
    assert payload["options"] == {"top_k": 2, "scores": "all", "threshold": 0.25}
    assert payload["sink"] == f"file://{tmp_path}"
    info = fleet.job(job).info()
    assert (info.requeued_from, info.queue, info.progress.total) == ("nightly", "classify.default.bulk", 2)
    assert {letter.requeued_as for letter in fleet.dead_letters()} == {job}


def test_the_letters_of_each_job_become_a_job_of_their_own(fleet, worker):
    for job in ("one", "two"):
        submit(fleet, job, [("same-id", "data:,x")], models="imagenet" if job == "one" else "nsfw")
    worker.fail()
    outcome = fleet.requeue(fleet.dead_letters())
    assert sorted(name.partition("-requeue-")[0] for name in outcome.jobs) == ["one", "two"]


def test_the_same_id_in_two_chunks_stays_in_two_chunks(fleet, worker):
    submit(fleet, "twins", [("a", "data:,1"), ("b", "data:,2"), ("a", "data:,3")], chunk_size=2)
    worker.fail()
    [job] = fleet.requeue(fleet.dead_letters()).jobs
    found = [[(item["id"], item["ref"]) for item in payload["items"]] for payload in payloads(worker, job)]
    assert found == [[("a", "data:,1"), ("b", "data:,2")], [("a", "data:,3")]]


def test_repeating_a_requeue_sends_nothing_twice(fleet, worker):
    submit(fleet, "nightly", ["data:,a", "data:,b"])
    worker.fail()
    seen = fleet.dead_letters()
    [job] = fleet.requeue(seen).jobs
    again = fleet.requeue(seen)  # with letters as they were before
    assert (again.jobs, again.before) == ({}, {job: 2})
    assert [info.id for info in fleet.jobs()].count(job) == 1
    assert fleet.job(job).progress().accepted == 2


def test_a_requeue_that_was_cut_short_is_the_same_job_when_it_is_repeated(fleet, worker, monkeypatch):
    submit(fleet, "nightly", [f"data:,{n}" for n in range(5)])
    worker.fail()
    submit_chunks, calls = flows.Flows.submit_chunks, []

    def cut_short(self, request, chunks, wait_seconds):
        calls.append(request.job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return (yield from submit_chunks(self, request, chunks, wait_seconds))

    with monkeypatch.context() as patch, Fleet(fleet.settings.broker_url, chunk_size=2) as small:
        patch.setattr(flows.Flows, "submit_chunks", cut_short)
        with pytest.raises(KeyboardInterrupt):
            small.requeue(small.dead_letters())
    with Fleet(fleet.settings.broker_url, chunk_size=2) as small:
        outcome = small.requeue(small.dead_letters())
    assert outcome.jobs == {calls[0]: 5}
    assert fleet.job(calls[0]).progress().total == 5


def test_a_requeue_whose_images_redis_lost_is_completed_when_it_is_repeated(fleet, worker, monkeypatch):
    submit(fleet, "nightly", [f"data:,{n}" for n in range(5)])
    worker.fail()
    kept = {key: worker.redis.dump(key) for key in worker.redis.keys("*")}
    seal = flows.Flows.seal

    def lossy(self, *args):
        worker.redis.flushdb()
        for key, dumped in kept.items():
            worker.redis.restore(key, 0, dumped)
        return (yield from seal(self, *args))

    with monkeypatch.context() as patch:
        patch.setattr(flows.Flows, "seal", lossy)
        with pytest.raises(LedgerUnavailable, match="lost images"):
            fleet.requeue(fleet.dead_letters())
    assert sum(fleet.requeue(fleet.dead_letters()).jobs.values()) == 5


def test_what_failed_again_is_requeued_under_a_name_of_its_own(fleet, worker):
    submit(fleet, "nightly", ["data:,a"])
    worker.fail()
    [first] = fleet.requeue(fleet.dead_letters()).jobs
    worker.fail()
    outcome = fleet.requeue(fleet.dead_letters())
    [second] = outcome.jobs
    assert outcome.before == {first: 1}
    assert second != first
    assert second.count("-requeue-") == 1
    assert fleet.job(second).info().requeued_from == first


def test_a_job_of_the_longest_name_can_be_requeued(fleet, worker):
    submit(fleet, "x" * 128, ["data:,a"])
    worker.fail()
    [job] = fleet.requeue(fleet.dead_letters()).jobs
    assert len(job) == 128


def test_parked_images_are_read_back(fleet, worker):
    big = b"\x00\xff" * 40_000
    submit(fleet, "nightly", [("big", big), ("small", b"small")])
    worker.fail()
    assert "data:;sha256=" in fleet.dead_letters(limit=2)[1].ref
    [job] = fleet.requeue(fleet.dead_letters()).jobs
    [payload] = payloads(worker, job)
    sha256 = payload["items"][0]["ref"].removeprefix("blob:")
    assert worker.run(worker.ledger.get_blob(job, payload["chunk"], sha256)) == big


def test_a_parked_image_that_has_expired_is_skipped_and_said(fleet, worker):
    submit(fleet, "nightly", [("big", b"x" * 100_000), ("small", "data:,b")])
    keys = worker.fail()
    worker.redis.delete(*worker.redis.keys(f"{worker.keys.prefix}blob:*"))
    outcome = fleet.requeue(fleet.dead_letters())
    assert list(outcome.jobs.values()) == [1]
    assert outcome.skipped == {keys[0]: flows.IMAGE_EXPIRED}
    again = fleet.requeue(fleet.dead_letters())
    assert again.skipped == outcome.skipped
    assert again.before == outcome.jobs
    assert len(fleet.jobs()) == 2  # no empty job for the one that is left


def test_images_in_a_claim_store(redis_url, worker, tmp_path):
    with Fleet(redis_url, claim_store=f"file://{tmp_path}") as fleet:
        submit(fleet, "nightly", [("big", b"x" * 100_000)])
        worker.fail()
        with Fleet(redis_url) as without:
            assert list(without.requeue(without.dead_letters()).skipped.values()) == [flows.NO_CLAIMS]
        [job] = fleet.requeue(fleet.dead_letters()).jobs
        [payload] = payloads(worker, job)
        sha256 = payload["items"][0]["ref"].removeprefix("claim:")
        assert fleet._flows.claims.get(job, payload["chunk"], sha256) == b"x" * 100_000
        assert fleet.discard(fleet.dead_letters()) == 1
        with pytest.raises(FileNotFoundError):
            fleet._flows.claims.get("nightly", "00000000", sha256)


def test_letters_that_are_gone_or_that_nobody_understands(fleet, worker):
    submit(fleet, "nightly", ["data:,a", "data:,b", "data:,c"])
    keys = worker.fail()
    seen = fleet.dead_letters()
    worker.redis.delete(worker.keys.dead(keys[0]))
    worker.redis.hset(worker.keys.dead(keys[1]), "letter", '{"v": 2}')
    worker.redis.hset(worker.keys.dead(keys[2]), "history", "no JSON\n")
    found = {letter.key: letter for letter in fleet.dead_letters()}
    assert set(found) == set(keys[1:])
    assert [(one.job, one.code, one.readable) for one in found.values()] == [("nightly", "internal", False)] * 2
    outcome = fleet.requeue(seen)
    assert outcome.jobs == {}
    assert outcome.skipped == {keys[0]: flows.GONE, **dict.fromkeys(keys[1:], flows.UNREADABLE)}


def test_discarding_frees_the_parked_image(fleet, worker):
    submit(fleet, "nightly", [("big", b"x" * 100_000), ("small", "data:,b")])
    worker.fail()
    letters = fleet.dead_letters()
    assert fleet.discard(letters) == 2
    assert fleet.discard(letters) == 0
    assert fleet.dead_letters() == []
    assert worker.redis.keys(f"{worker.keys.prefix}blob:*") == []
    assert worker.redis.get(worker.keys.shared("blob_bytes")) == b"0"


def test_a_requeue_that_finds_no_room_says_so_and_goes_on_when_it_is_repeated(fleet, worker):
    submit(fleet, "nightly", [f"data:,{n}" for n in range(4)] + [b"x" * 100_000])
    worker.fail()
    limited = {"max_queued_images": {"bulk": 3}, "chunk_size": 2}
    with Fleet(fleet.settings.broker_url, **limited) as small:
        letters = small.dead_letters()
        with pytest.raises(QueueFull, match="MAX_QUEUED_IMAGES=3") as raised:
            small.requeue(letters)
        assert 1 <= raised.value.retry_after_seconds <= 60
        with pytest.raises(QueueFull):
            small.requeue(small.dead_letters(), wait_seconds=0.1)
        [job] = [info.id for info in fleet.jobs() if info.requeued_from]
        assert fleet.job(job).progress().accepted == 2
        for chunk in worker.run(worker.ledger.pending(job, 0, 9)):
            worker.begin(job, chunk, "classify.default.bulk")
    with Fleet(fleet.settings.broker_url, chunk_size=2) as roomy:
        outcome = roomy.requeue(letters)
    assert outcome.jobs == {job: 5}
    assert fleet.job(job).progress().total == 5


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("where", ["redis", "claims"])
def test_two_letters_share_an_image(redis_url, worker, tmp_path, first, where):
    """Whichever is dropped or tried again first, the other still has it; the last takes it away."""
    store = f"file://{tmp_path}" if where == "claims" else None
    with Fleet(redis_url, claim_store=store) as fleet:
        submit(fleet, "nightly", [("a", b"x" * 100_000), ("b", b"x" * 100_000)])
        worker.fail()
        letters = sorted(fleet.dead_letters(), key=lambda letter: letter.id)
        one, other = letters[first], letters[1 - first]
        assert fleet.requeue([one]).skipped == {}
        assert fleet.discard([one]) == 1
        assert fleet.discard([one]) == 0
        outcome = fleet.requeue([other])
        assert (outcome.skipped, sum(outcome.jobs.values())) == ({}, 1)
        assert fleet.discard([other]) == 1
        kept = [key for key in worker.redis.keys(f"{worker.keys.prefix}*") if b":nightly:00000000:" in key]
        assert [key for key in kept if b"chunk:" not in key and b"records:" not in key] == []
        assert list(tmp_path.rglob("nightly/00000000/*")) == []


def test_the_same_on_an_event_loop(fleet, worker, redis_url):
    submit(fleet, "nightly", [("big", b"x" * 100_000), ("small", "data:,b")])
    worker.fail()

    async def main():
        async with AsyncFleet(redis_url) as there:
            letters = await there.dead_letters(job="nightly", since=timedelta(hours=1))
            outcome = await there.requeue(letters)
            return outcome, await there.discard(letters)

    outcome, dropped = asyncio.run(main())
    assert (list(outcome.jobs.values()), dropped) == ([2], 2)


def test_a_fleet_in_memory_has_none():
    with InMemoryFleet({}) as fleet:
        assert fleet.dead_letters(code="internal") == []
        assert fleet.requeue([]).jobs == {}
        assert fleet.discard([]) == 0
