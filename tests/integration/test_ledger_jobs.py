"""The ledger's protocol on a real Redis: commits, the end of a job, parked images, and what can be read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from classifleet.ledger import (
    Begin,
    Commit,
    Parked,
    Part,
    Tally,
    read_depth,
)
from classifleet.ledger.values import MANUAL_ATTEMPT
from tests.fixtures_ledger import (
    LONG_MS,
    QUEUE,
    SHORT_MS,
    TTL_SECONDS,
    Bench,
    head,
    wait_for_next_millisecond,
)
from tests.support import wait_until

INLINE_FINISH_CHUNKS = 64  # as in ledger/lua/prelude.lua

# --- commit --------------------------------------------------------------------------------------------------------


def test_a_commit_is_of_the_images_that_were_begun(bench: Bench) -> None:
    """The job was deleted, and another one took its id while the first one's worker still ran."""
    bench.put("j", "c1", digest="1" * 16)
    old = bench.begin("j", "c1")
    assert old.digest == "1" * 16
    bench.redis.flushdb()
    bench.put("j", "c1", digest="2" * 16)
    new = bench.begin("j", "c1")
    assert bench.commit("j", "c1", old.attempt, digest=old.digest) == (Commit.GONE, False)
    assert bench.commit("j", "c1", new.attempt, digest=new.digest) == (Commit.COMMITTED, False)
    assert old.attempt == new.attempt
    assert bench.commit("j", "c1", old.attempt, digest=old.digest) == (Commit.GONE, False)
    assert bench.commit("j", "c1", new.attempt, digest=new.digest) == (Commit.REPEATED, False)


def test_the_first_commit_wins(bench: Bench) -> None:
    bench.put("j", "c1", images=6, seal=True)
    bench.put("open", "c1")
    bench.begin("j", "c1", "w1", lease_ms=0)
    bench.run(bench.ledger.expire_leases(QUEUE, limit=1))
    bench.begin("j", "c1", "w2")
    tally = Tally(ok=3, partial=1, failed=2, codes={"not_found": 1, "undecodable": 1})
    records = [("a", b'{"n":1}'), ("\u00e9/\n", b"{}")]
    assert bench.commit("j", "c1", 2, tally=tally, records=records) == (Commit.COMMITTED, False)
    before = bench.dump()
    assert bench.commit("j", "c1", 2, tally=tally, records=records) == (Commit.REPEATED, False)
    assert bench.commit("j", "c1", 1, records=[("a", b"other")]) == (Commit.LATE, False)
    assert bench.commit("j", "c2") == (Commit.GONE, False)
    assert bench.commit("x", "c1") == (Commit.GONE, False)
    assert bench.dump() == before
    fields = bench.job("j")
    assert [fields[name] for name in ("done", "ok", "partial", "failed")] == ["6", "3", "1", "2"]
    assert (fields["code:not_found"], fields["code:undecodable"]) == ("1", "1")
    assert bench.run(bench.ledger.records("j", "c1")) == dict(records)
    assert bench.run(bench.ledger.part("j", "c1")) == Part("c1", 2, 3, 1, 2, "")
    assert bench.run(bench.ledger.part("j", "c2")) is None
    assert bench.run(bench.ledger.chunk("j", "c1")) == {}
    assert bench.images() == (2, 0, 6)


def test_a_commit_counts_wherever_its_chunk_is(bench: Bench) -> None:
    """A worker that was thought dead commits after its chunk went back to the queue."""
    bench.put("j", "c1", images=5, seal=True)
    bench.begin("j", "c1", lease_ms=0)
    assert bench.run(bench.ledger.expire_leases(QUEUE, limit=1)) == [("j", "c1")]
    assert bench.commit("j", "c1", 1, images=5)[0] is Commit.COMMITTED
    assert (bench.members("queued"), bench.members("leased"), bench.images()) == ([], [], (0, 0, 5))
    assert bench.counts("j") == (5, 1, 0, 5)
    assert bench.begin("j", "c1").outcome is Begin.DONE


def test_nobody_needs_to_wait_for_a_job(bench: Bench) -> None:
    header = head()
    del header["reply_to"]
    bench.put("j", "c1", header=header, seal=True)
    bench.begin("j", "c1")
    assert bench.commit("j", "c1")[0] is Commit.COMMITTED
    assert bench.job("j")["state"] == "done"


def test_parts_keep_their_names_and_the_log_its_order(bench: Bench) -> None:
    for chunk in ("b", "a", "c"):
        bench.put("j", chunk)
        bench.begin("j", chunk)
        bench.commit("j", chunk, part=f"j/parts/{chunk} 1.ndjson")
    assert bench.run(bench.ledger.log("j", 0, 10)) == ["b", "a", "c"]
    assert bench.run(bench.ledger.log("j", 1, 1)) == ["a"]
    part = bench.run(bench.ledger.part("j", "a"))
    assert part is not None
    assert (part.name, part.images) == ("j/parts/a 1.ndjson", 2)


def test_each_commit_is_told_to_the_producer(bench: Bench) -> None:
    bench.put("j", "c1")
    bench.begin("j", "c1")
    with bench.redis.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(bench.keys.reply("client-1"))
        channel.get_message(timeout=5)
        bench.commit("j", "c1")
        heard: Any = wait_until(lambda: channel.get_message(timeout=0.1), "the producer to hear of its job")
        assert heard["data"] == b"j"
        bench.commit("j", "c1")
        assert channel.get_message(timeout=0.1) is None, "a repeated commit is no news"


# --- the end of a job ----------------------------------------------------------------------------------------------


def ttls(bench: Bench) -> dict[str, int]:
    return {name: int(bench.redis.ttl(bench.keys.shared(name))) for name in bench.names()}


def test_time_to_live_counts_from_the_end(bench: Bench) -> None:
    for index in range(3):
        bench.put("j", str(index), seal=index == 2)
        bench.begin("j", str(index))
        assert set(ttls(bench).values()) == {-1}, "nothing expires while the job runs"
        bench.commit("j", str(index), records=[("a", b"{}")])
    assert bench.job("j")["state"] == "done"
    after = ttls(bench)
    mine = {"job:j", "parts:j", "log:j", "records:j:0", "records:j:1", "records:j:2"}
    assert {name for name, ttl in after.items() if ttl >= 0} == mine
    assert all(TTL_SECONDS - 5 <= after[name] <= TTL_SECONDS for name in mine)
    assert "pending:j" not in after


@pytest.mark.parametrize(("chunks", "waits"), [(INLINE_FINISH_CHUNKS, False), (INLINE_FINISH_CHUNKS + 1, True)])
def test_large_jobs_wait_for_the_finaliser(bench: Bench, chunks: int, waits: bool) -> None:
    for index in range(chunks):
        bench.put("j", str(index), seal=index == chunks - 1)
    lasts = [bench.commit("j", str(index), bench.begin("j", str(index)).attempt)[1] for index in range(chunks)]
    assert lasts == [False] * (chunks - 1) + [waits]
    assert (bench.job("j")["state"] == "done") is not waits
    assert bench.run(bench.ledger.finalisable(10)) == (["j"] if waits else [])
    assert bench.run(bench.ledger.finish("j")) is waits
    assert bench.job("j")["state"] == "done"
    assert bench.run(bench.ledger.finalisable(10)) == []
    assert bench.run(bench.ledger.finish("j")) is False


def test_jobs_with_a_sink_wait_for_the_finaliser(bench: Bench) -> None:
    bench.put("j", "c1", seal=True, header=head(sink="s3://bucket/out"))
    assert bench.run(bench.ledger.finish("j")) is False, "there is work left"
    bench.begin("j", "c1")
    assert bench.commit("j", "c1", part="p") == (Commit.COMMITTED, True)
    assert bench.job("j")["state"] == "sealed"
    with bench.redis.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(bench.keys.reply("client-1"))
        channel.get_message(timeout=5)
        assert bench.run(bench.ledger.finish("j")) is True
        assert wait_until(lambda: channel.get_message(timeout=0.1), "the producer to hear of the end")
    assert bench.job("j")["state"] == "done"


def test_a_job_that_vanished_leaves_the_finaliser(bench: Bench) -> None:
    bench.redis.zadd(bench.keys.shared("finalise"), {"gone": 1})
    assert bench.run(bench.ledger.finish("gone")) is False
    assert bench.run(bench.ledger.finalisable(10)) == []


def test_the_finaliser_starts_the_time_to_live_of_records(bench: Bench) -> None:
    bench.put("j", "c1")
    bench.begin("j", "c1")
    bench.commit("j", "c1", records=[("a", b"{}")])
    assert bench.run(bench.ledger.expire_records("j", "c1", 77)) is True
    assert 0 < int(bench.redis.ttl(bench.keys.records("j", "c1"))) <= 77
    assert bench.run(bench.ledger.expire_records("j", "none", 77)) is False


def test_a_cancelled_job_ends_when_its_chunks_have_records(bench: Bench) -> None:
    for chunk in ("c1", "c2"):
        bench.put("j", chunk)
    bench.begin("j", "c1")
    assert bench.run(bench.ledger.cancel("j")) == "CANCELLED"
    assert bench.run(bench.ledger.cancel("j")) == "CANCELLED"
    assert bench.run(bench.ledger.finalisable(10)) == ["j"]
    assert bench.run(bench.ledger.finish("j")) is False
    assert bench.run(bench.ledger.pending("j", 0, 10)) == ["c2"], "c1 is at work and will answer"
    tally = Tally(failed=2, codes={"cancelled": 2})
    bench.commit("j", "c2", MANUAL_ATTEMPT, tally=tally)
    assert bench.commit("j", "c1") == (Commit.COMMITTED, False), "what was at work may still answer"
    fields = bench.job("j")
    assert (fields["state"], fields["ok"], fields["failed"], fields["code:cancelled"]) == ("cancelled", "2", "2", "2")
    assert "finished_at" in fields
    assert bench.run(bench.ledger.finalisable(10)) == []
    assert bench.run(bench.ledger.cancel("j")) == "FINISHED"
    assert bench.run(bench.ledger.cancel("x")) == "UNKNOWN"
    assert bench.images() == (0, 0, 4)


def test_no_message_is_missing_for_a_cancelled_chunk_that_was_refused(bench: Bench) -> None:
    for chunk in ("c1", "c2"):
        bench.put("j", chunk)
    bench.run(bench.ledger.cancel("j"))
    assert bench.begin("j", "c1", queue=QUEUE).outcome is Begin.CANCELLED
    assert bench.members("queued") == ["j/c2"]
    assert bench.run(bench.ledger.pending("j", 0, 10)) == ["c1", "c2"]
    for chunk in ("c1", "c2"):
        bench.commit("j", chunk, MANUAL_ATTEMPT, tally=Tally(failed=2))
    assert (bench.images(), bench.members("queued")) == ((0, 0, 4), [])


def test_delete_takes_a_finished_job_page_by_page(bench: Bench) -> None:
    bench.put("running", "c1")
    assert bench.run(bench.ledger.delete("running")) == -1
    bench.finished("j", 5)
    assert [bench.run(bench.ledger.delete("j", page=2)) for _ in range(3)] == [0, 0, 1]
    assert [name for name in bench.names() if ":j" in name] == []
    assert bench.run(bench.ledger.jobs(0, 10)) == ["running"]
    assert bench.run(bench.ledger.delete("j")) == 1
    assert bench.job("running")["state"] == "open"


# --- parked images -------------------------------------------------------------------------------------------------

SHA = "ab" * 32


def park(
    bench: Bench, data: bytes, *, chunk: str = "c1", sha: str = SHA, ttl_ms: int = LONG_MS, cap: int = 100
) -> Parked:
    return bench.run(bench.ledger.put_blob("j", chunk, sha, data, ttl_ms=ttl_ms, cap=cap))


def parked_bytes(bench: Bench) -> int:
    return int(bench.redis.get(bench.keys.shared("blob_bytes")) or 0)


def test_images_are_parked_up_to_the_cap(bench: Bench) -> None:
    assert park(bench, b"\x00" * 60) is Parked.STORED
    assert park(bench, b"\x00" * 60) is Parked.STORED, "parking it again takes no more room"
    assert parked_bytes(bench) == 60
    assert park(bench, b"x" * 41, sha="cd" * 32) is Parked.OVER_CAP
    assert park(bench, b"x" * 40, sha="cd" * 32) is Parked.STORED
    assert parked_bytes(bench) == 100
    assert bench.run(bench.ledger.get_blob("j", "c1", SHA)) == b"\x00" * 60
    assert bench.run(bench.ledger.get_blob("j", "c2", SHA)) is None
    assert 0 < int(bench.redis.pttl(bench.keys.blob("j", "c1", SHA))) <= LONG_MS


def test_a_commit_deletes_the_images_of_its_chunk(bench: Bench) -> None:
    items = [{"id": "a", "ref": f"blob:{SHA}"}, {"id": "b", "ref": "https://example.com"}]
    payload = json.dumps({"items": items}, separators=(",", ":")).encode()
    for chunk in ("c1", "c2"):
        assert park(bench, b"x" * 50, chunk=chunk) is Parked.STORED
        bench.put("j", chunk, payload=payload)
        bench.begin("j", chunk)
    bench.commit("j", "c1")
    assert bench.run(bench.ledger.get_blob("j", "c1", SHA)) is None
    assert bench.run(bench.ledger.get_blob("j", "c2", SHA)) == b"x" * 50
    assert parked_bytes(bench) == 50
    bench.redis.delete(bench.keys.blob("j", "c2", SHA))  # as if its time had ended
    bench.commit("j", "c2")
    assert parked_bytes(bench) == 50, "its room is freed with its member, when that has expired"


def test_the_room_of_expired_images_is_free_again(bench: Bench) -> None:
    assert park(bench, b"x" * 90, ttl_ms=SHORT_MS) is Parked.STORED
    wait_until(lambda: park(bench, b"x" * 80, sha="cd" * 32) is Parked.STORED, "the first image to expire")
    assert park(bench, b"x" * 20, sha="ef" * 32) is Parked.STORED
    assert parked_bytes(bench) == 100, "an expired image is subtracted once"
    assert bench.run(bench.ledger.get_blob("j", "c1", SHA)) is None


# --- duties, lists, depth ------------------------------------------------------------------------------------------


def test_one_owner_has_a_duty_until_its_lease_ends(bench: Bench) -> None:
    hold = bench.ledger.hold
    assert bench.run(hold("reconcile", "a", lease_ms=LONG_MS))
    assert bench.run(hold("reconcile", "a", lease_ms=SHORT_MS)), "kept, and now ending soon"
    assert bench.run(hold("other", "b", lease_ms=LONG_MS))
    wait_until(lambda: bench.run(hold("reconcile", "b", lease_ms=LONG_MS)), "the lease of a to end")
    assert not bench.run(hold("reconcile", "a", lease_ms=LONG_MS))


def test_jobs_are_listed_newest_first(bench: Bench) -> None:
    for job in ("a", "b", "c"):
        bench.put(job)
        wait_for_next_millisecond(bench)
    assert bench.run(bench.ledger.jobs(0, 2)) == ["c", "b"]
    assert bench.run(bench.ledger.jobs(2, 2)) == ["a"]
    assert bench.run(bench.ledger.forget_job("b")) == 1
    assert bench.run(bench.ledger.jobs(0, 9)) == ["c", "a"]


def test_depth_counts_images_and_the_age_of_the_oldest(bench: Bench) -> None:
    empty = read_depth(bench.runner.run_all(bench.ledger.depth(QUEUE)))
    assert (empty.queued_chunks, empty.leased_chunks, empty.queued_images, empty.oldest_seconds) == (0, 0, 0, 0.0)
    for index, images in enumerate((5, 7, 11)):
        bench.put("j", str(index), images=images)
    bench.begin("j", "1")
    depth = wait_until(lambda: older(bench, 0.05), "the oldest chunk to be 50 ms old")
    assert (depth.queued_chunks, depth.leased_chunks) == (2, 1)
    assert (depth.queued_images, depth.leased_images, depth.done_images) == (16, 7, 0)
    assert depth.oldest_seconds < 60


def older(bench: Bench, seconds: float) -> Any:
    depth = read_depth(bench.runner.run_all(bench.ledger.depth(QUEUE)))
    return depth if depth.oldest_seconds >= seconds else None
