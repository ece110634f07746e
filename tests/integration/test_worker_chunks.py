"""One chunk's way through `ChunkRunner`, on the real ledger, with a pipeline that does what a test says."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import Reject

from classifleet.config import LedgerUnavailable, Settings
from classifleet.ledger import _scripts
from classifleet.worker.suspects import GIVE_UP_DEATHS, PATIENT_DEATHS
from tests.conftest import S3, SettingsFactory
from tests.fixtures_ledger import QUEUE, Bench
from tests.support import wait_until
from tests.support.proxy import lossy_proxy
from tests.support.workshop import Workshop, open_workshop


@pytest.fixture
def workshop(bench: Bench) -> Iterator[Workshop]:
    with open_workshop(bench) as workshop:
        yield workshop


def code_counts(bench: Bench) -> dict[str, int]:
    return {name[5:]: int(value) for name, value in bench.job("j").items() if name.startswith("code:")}


# --- the clock of a suspect chunk ----------------------------------------------------------------------------------


def test_each_image_of_a_suspect_chunk_has_its_own_clock(workshop: Workshop, settings: SettingsFactory) -> None:
    chunks = workshop.build(settings(chunk_timeout_seconds=0.4))
    workshop.pipeline.image_seconds = 0.15
    workshop.put("0", images=5, deaths=2)
    running, longest = workshop.start("0"), 0.0
    while not running.done():
        longest = max(longest, chunks.in_flight.still_seconds())
        time.sleep(0.01)
    running.result()
    assert code_counts(workshop.bench) == {"not_found": 5}
    assert longest < 0.4, "/livez sees that it moves"


def test_an_image_of_a_suspect_chunk_that_stands_still_ends_it(workshop: Workshop, settings: SettingsFactory) -> None:
    workshop.build(settings(chunk_timeout_seconds=0.2))
    workshop.pipeline.image_seconds = 60
    workshop.put("0", deaths=2)
    workshop.run("0")
    assert workshop.bench.members("queued") == ["j/0"]
    assert "mark" not in workshop.bench.run(workshop.bench.ledger.chunk("j", "0"))


def test_no_image_is_to_blame_while_a_model_is_loaded(workshop: Workshop, settings: SettingsFactory) -> None:
    """Or one that kills its process as it is loaded would convict whoever is alone there."""
    chunks, pipeline = workshop.build(settings()), workshop.pipeline
    pipeline.image_seconds = 0.05
    workshop.put("0", images=20, deaths=2)
    running = workshop.start("0")
    wait_until(lambda: workshop.mark("0"), "an image to be marked")
    with chunks.marks.not_alone():
        for _ in range(3):
            assert not workshop.mark("0")
            done = pipeline.images
            wait_until(lambda done=done: pipeline.images > done, "another image")
    wait_until(lambda: workshop.mark("0"), "an image to be marked again")
    running.result()
    assert code_counts(workshop.bench) == {"not_found": 20}


def test_a_chunk_that_has_cost_much_waits_for_loads_a_while(
    workshop: Workshop, settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the image that kills would never be marked, where each worker begins with loads."""
    chunks = workshop.build(settings())
    workshop.put("0", images=1, deaths=PATIENT_DEATHS)
    with chunks.marks.not_alone():
        running = workshop.start("0")
        with pytest.raises(TimeoutError):
            running.result(0.3)
    running.result(10)
    workshop.put("1", images=1, deaths=PATIENT_DEATHS)
    monkeypatch.setattr("classifleet.worker.suspects.LOADS_SECONDS", 0.05)
    with chunks.marks.not_alone():
        workshop.start("1").result(10)
    assert code_counts(workshop.bench) == {"not_found": 2}


def test_what_kills_one_worker_after_the_other_ends(workshop: Workshop, settings: SettingsFactory) -> None:
    """Such as a model that kills its process as it is loaded: no image can be named."""
    workshop.build(settings())
    workshop.put("0", images=3, deaths=GIVE_UP_DEATHS)
    workshop.bench.redis.hset(workshop.bench.keys.chunk("j", "0"), "lone_deaths", '["i1","i0","i1"]')
    workshop.run("0")
    assert (code_counts(workshop.bench), workshop.pipeline.begun) == ({"poison": 1, "internal": 2}, 0)


def test_an_ordinary_chunk_has_one_clock(workshop: Workshop, settings: SettingsFactory) -> None:
    workshop.build(settings(chunk_timeout_seconds=0.2))
    workshop.pipeline.image_seconds = 0.15
    workshop.put("0", images=5)
    workshop.run("0")
    assert workshop.bench.members("queued") == ["j/0"]


def test_only_failures_count_until_a_chunk_is_given_up(workshop: Workshop, settings: SettingsFactory) -> None:
    """Whoever was handed back often, for others' reasons, has as many tries as all."""
    bench = workshop.bench
    workshop.build(settings(chunk_timeout_seconds=0.05))
    workshop.put("0")
    bench.redis.hset(bench.keys.chunk("j", "0"), "attempt", 50)
    workshop.pipeline.image_seconds = 60
    for _ in range(4):
        workshop.run("0")
        assert bench.members("queued") == ["j/0"]
    workshop.run("0")
    assert code_counts(bench) == {"internal": 2}
    message = json.loads(bench.run(bench.ledger.records("j", "0"))["i0"])["error"]["message"]
    assert message == "its chunk failed 5 times: TimeoutError"


def test_what_is_begun_after_its_deadline_is_answered_without_work(
    workshop: Workshop, settings: SettingsFactory
) -> None:
    workshop.build(settings())
    workshop.put("0", deadline_ms=0)
    workshop.run("0")
    assert code_counts(workshop.bench) == {"deadline_exceeded": 2}
    assert workshop.pipeline.begun == 0


# --- models that only others have ----------------------------------------------------------------------------------


def test_a_chunk_for_models_that_only_others_have_is_left_to_them(
    workshop: Workshop, settings: SettingsFactory
) -> None:
    workshop.build(settings())
    workshop.put("0")
    workshop.lender.left = {"m"}
    workshop.run("0")
    assert (workshop.bench.members("parked"), workshop.pipeline.begun) == (["j/0"], 0)
    assert workshop.bench.run(workshop.bench.ledger.unpark(QUEUE, [("j", "0")])) == [("j", "0")]
    workshop.lender.left = set()
    workshop.run("0")
    assert code_counts(workshop.bench) == {"not_found": 2}


def test_while_it_is_not_known_what_others_have_the_chunk_is_handed_back(
    workshop: Workshop, settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.build(settings())
    workshop.put("0")

    def away(*_: Any) -> bool:
        raise LedgerUnavailable("away")

    monkeypatch.setattr(workshop.lender, "left_to_others", away)
    workshop.run("0")
    assert workshop.bench.members("queued") == ["j/0"]


# --- a begin whose answer is lost ----------------------------------------------------------------------------------


def test_a_drain_leaves_no_lease_behind_that_nobody_knows_of(
    workshop: Workshop, settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks, bench = workshop.build(settings()), workshop.bench
    workshop.put("0")
    run = workshop.runner.run

    def lossy(call: Any) -> Any:
        answer = run(call)
        if call.ask is _scripts.BEGIN:
            chunks.abort()
            raise LedgerUnavailable("the answer was lost")
        return answer

    monkeypatch.setattr(workshop.runner, "run", lossy)
    with pytest.raises(Reject):
        workshop.run("0")
    assert (bench.members("leased"), bench.members("queued")) == ([], ["j/0"])
    assert run(bench.ledger.chunk("j", "0"))["deaths"] == "0"
    assert workshop.pipeline.begun == 0


def test_a_begin_that_the_connection_repeats_is_granted_once(bench: Bench, settings: SettingsFactory) -> None:
    for chunk in ("0", "1"):
        bench.put("j", chunk)
    bench.run(bench.ledger.now())
    host, _, database = bench.url.rpartition("/")
    with lossy_proxy(int(host.rpartition(":")[2])) as proxy:
        behind = Bench(settings(broker_url=f"redis://127.0.0.1:{proxy.port}/{database}"))
        behind.run(bench.ledger.now())
        behind.begin("j", "0", queue=QUEUE, lease_ms=0)
        bench.run(bench.ledger.expire_leases(QUEUE, limit=9))
        proxy.lose(_scripts.BEGIN.sha1.encode())
        lease = behind.begin("j", "0", queue=QUEUE)
        assert proxy.lost == 1
        assert bench.members("leased") == [f"j/{lease.chunk}"]
        behind.runner.close()


# --- a sink that refuses -------------------------------------------------------------------------------------------


@pytest.fixture
def refused(s3: S3) -> str:
    """A sink in a bucket that is gone."""
    return f"{s3.url}-gone/out"


def for_sink(settings: SettingsFactory, s3: S3, **changes: Any) -> Settings:
    return settings(**{"sink_allow": [f"{s3.url}-gone"], **s3.settings_kwargs, **changes})


def test_records_wait_for_a_sink_that_refuses(
    workshop: Workshop, s3: S3, refused: str, settings: SettingsFactory
) -> None:
    bench = workshop.bench
    workshop.build(for_sink(settings, s3))
    workshop.put("0", sink=refused)
    running = workshop.start("0")
    wait_until(lambda: "sink" in workshop.outages.away() and "sink_failed_at" in bench.job("j"), "the sink to refuse")
    s3.client.create_bucket(Bucket=f"{s3.bucket}-gone")
    running.result(30)
    part = bench.run(bench.ledger.part("j", "0"))
    assert part is not None
    assert part.name.startswith("parts/0-1-")
    assert workshop.pipeline.begun == 1
    assert "sink_failed_at" not in bench.job("j")
    assert workshop.outages.away() == {}
    s3.client.delete_bucket(Bucket=f"{s3.bucket}-gone")


def test_a_sink_that_refuses_for_ever_is_given_up(
    workshop: Workshop, s3: S3, refused: str, settings: SettingsFactory
) -> None:
    bench = workshop.bench
    workshop.build(for_sink(settings, s3, sink_patience_seconds=0.5, keep_results_seconds=1))
    workshop.put("0", sink=refused)
    workshop.put("1", sink=refused)
    bench.seal("j")
    for _ in range(9):
        workshop.run("0")
        if not bench.members("queued"):
            break
    assert code_counts(bench) == {"internal": 4}
    assert bench.counts("j")[3] == 4
    for chunk in "01":
        records = bench.run(bench.ledger.records("j", chunk))
        assert set(records) == {"i0", "i1"}
        assert f"the sink {refused} has taken no records for " in json.loads(records["i0"])["error"]["message"]
    assert len(bench.run(bench.ledger.dead_letters(0, 9))) == 4
    assert bench.run(bench.ledger.finish("j")), "nothing keeps the job from its end"


def test_no_chunk_is_worked_on_for_a_sink_that_many_wait_for(
    workshop: Workshop, s3: S3, refused: str, settings: SettingsFactory
) -> None:
    chunks = workshop.build(for_sink(settings, s3, chunks_in_flight=2))
    workshop.put("0", sink=refused)
    workshop.put("1", sink=refused)
    running = workshop.start("0")
    wait_until(lambda: chunks._committer._for_sinks._value == 0, "the first to wait")
    workshop.run("1")
    assert (workshop.pipeline.begun, workshop.bench.members("queued")) == (1, ["j/1"])
    chunks.abort()
    with pytest.raises(Reject):
        running.result(10)


def test_how_long_a_sink_has_failed(bench: Bench) -> None:
    for chunk in "01":
        bench.put("j", chunk)
    ago = bench.run(bench.ledger.now()) - 50_000
    for key in (bench.keys.job("j"), bench.keys.chunk("j", "0")):
        bench.redis.hset(key, mapping={"sink_failed_at": ago, "sink_tried_at": ago})

    def failed(chunk: str, gap_ms: int = 60_000) -> bool:
        return bench.run(bench.ledger.sink_failed("j", chunk, gap_ms=gap_ms)) >= 50_000

    assert failed("0")
    assert failed("1"), "of the whole job"
    bench.commit("j", "1", bench.begin("j", "1").attempt, part="p")
    assert failed("0"), "others were written, and this one was not"
    bench.redis.hset(bench.keys.chunk("j", "0"), "sink_tried_at", ago)
    assert not failed("0", gap_ms=40_000), "nobody tried for so long"
    assert bench.run(bench.ledger.sink_failed("j", "gone", gap_ms=1)) == 0
