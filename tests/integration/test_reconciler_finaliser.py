"""The ends of jobs: cancelled images, manifests, parts that lost, sinks that are broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from classifleet.config.celery_app import Publisher
from classifleet.ledger import Put, SyncRunner, Tally, connect
from classifleet.worker.reconciler import Reconciler, finaliser
from classifleet.worker.sink import Sinks
from tests.conftest import SettingsFactory
from tests.fixtures_ledger import Bench
from tests.integration.test_reconciler import HEADER, payload, put


@pytest.fixture
def sink(tmp_path: Path) -> Path:
    folder = tmp_path / "sink"
    folder.mkdir()
    return folder


@pytest.fixture
def reconciler(bench: Bench, settings: SettingsFactory, sink: Path) -> Iterator[Reconciler]:
    given = settings(sink_allow=[f"file://{sink.parent}"])
    publisher = Publisher(given)
    yield Reconciler(bench.ledger, bench.runner, publisher, Sinks(given), given, "r1")
    publisher.close()


def manifest(sink: Path, job: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((sink / job / "manifest.json").read_text())
    return found


def test_a_job_with_a_sink_has_a_manifest_of_its_winners(bench: Bench, reconciler: Reconciler, sink: Path) -> None:
    header = {**HEADER, "sink": f"file://{sink}"}
    put(bench, "j", "c1", header=header)
    put(bench, "j", "c2", header=header, seal=True)
    sinks = reconciler.context.sinks
    for chunk in ("c1", "c2"):
        bench.begin("j", chunk)
        for attempt in (1, 2):  # the second writer died before its commit
            sinks.write_part(f"file://{sink}", "j", f"parts/{chunk}-{attempt}.ndjson", [b"{}", b"{}"])
        bench.commit("j", chunk, part=f"parts/{chunk}-1.ndjson")
    reconciler.finalise()
    found = manifest(sink, "j")
    assert [part["name"] for part in found["parts"]] == ["parts/c1-1.ndjson", "parts/c2-1.ndjson"]  # type: ignore[attr-defined]
    assert found["state"] == "done"
    assert sorted(path.name for path in (sink / "j" / "parts").iterdir()) == ["c1-1.ndjson", "c2-1.ndjson"]
    assert bench.job("j")["state"] == "done"


@pytest.mark.parametrize("with_sink", [False, True])
def test_every_image_of_a_cancelled_job_has_its_record(
    bench: Bench, reconciler: Reconciler, sink: Path, with_sink: bool
) -> None:
    header = {**HEADER, "sink": f"file://{sink}"} if with_sink else HEADER
    for chunk in range(300):
        put(bench, "j", str(chunk), header=header, payload=payload("j", str(chunk), (f"{chunk}-a", f"{chunk}-b")))
    bench.begin("j", "7")
    bench.run(bench.ledger.cancel("j"))
    reconciler.finalise()
    fields = bench.job("j")
    assert (fields["done"], fields["code:cancelled"], "finished_at" in fields) == ("598", "598", False)
    assert bench.run(bench.ledger.finalisable(9, bench.run(bench.ledger.now()))) == [], "not at each round"
    bench.commit("j", "7", tally=Tally(ok=2))
    reconciler.finalise()
    assert "finished_at" in bench.job("j")
    ids: set[str] = set()
    for chunk in range(300):
        part = bench.run(bench.ledger.part("j", str(chunk)))
        assert part is not None
        if part.name:
            lines = (sink / "j" / part.name).read_text().splitlines()
            ids |= {json.loads(line)["id"] for line in lines}
        else:
            ids |= set(bench.run(bench.ledger.records("j", str(chunk))))
    assert ids == {f"{chunk}-{name}" for chunk in range(300) if chunk != 7 for name in "ab"}
    if with_sink:
        assert manifest(sink, "j")["state"] == "cancelled"


def test_jobs_that_only_others_can_end_hold_up_nobody_else(
    bench: Bench, settings: SettingsFactory, sink: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter without the sink's credentials, and no worker."""
    monkeypatch.setattr(finaliser, "PAGE", 2)
    given = settings(sink_allow=[])
    publisher = Publisher(given)
    exporter = Reconciler(bench.ledger, bench.runner, publisher, Sinks(given), given, "e1", is_worker=False)
    for job in ("s1", "s2", "s3"):
        put(bench, job, "c", header={**HEADER, "sink": f"file://{sink}"})
        bench.run(bench.ledger.cancel(job))
    put(bench, "plain", "c")
    bench.run(bench.ledger.cancel("plain"))
    exporter.finalise()
    publisher.close()
    assert "finished_at" in bench.job("plain")
    assert bench.run(bench.ledger.finalisable(9)) == ["s1", "s2", "s3"]


def test_a_producer_that_comes_back_while_its_manifest_is_written_loses_nothing(
    bench: Bench, reconciler: Reconciler, sink: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a chunk taken then, the part would be deleted as one that lost, and committed all the same."""
    header = {**HEADER, "sink": f"file://{sink}"}
    put(bench, "j", "c1", header=header)
    bench.begin("j", "c1")
    reconciler.context.sinks.write_part(f"file://{sink}", "j", "parts/c1-1.ndjson", [b"{}", b"{}"])
    bench.commit("j", "c1", part="parts/c1-1.ndjson")
    bench.run(bench.ledger.abandon(-1, 9))
    write = Sinks.write_manifest
    answers: list[Put] = []

    def meanwhile(self: Sinks, *args: Any) -> None:
        write(self, *args)
        answers.extend((bench.put("j", "c2", header=header), bench.seal("j")))

    monkeypatch.setattr(Sinks, "write_manifest", meanwhile)
    reconciler.finalise()
    assert answers == [Put.ABANDONED, Put.SEALED]
    assert (bench.job("j")["state"], "finished_at" in bench.job("j")) == ("abandoned", True)


def test_a_broken_sink_holds_up_nobody_else(bench: Bench, reconciler: Reconciler, sink: Path) -> None:
    blocked = sink.parent / "file"
    blocked.write_text("not a folder")
    for job, target in (("broken", blocked), ("whole", sink)):
        put(bench, job, "c", header={**HEADER, "sink": f"file://{target}"}, seal=True)
        bench.begin(job, "c")
        bench.commit(job, "c", part="parts/c-1.ndjson")
    reconciler.finalise()
    assert [bench.job(job)["state"] for job in ("broken", "whole")] == ["sealed", "done"]
    assert bench.run(bench.ledger.finalisable(9)) == ["broken"], "tried again later"
    blocked.unlink()
    bench.run(bench.ledger.defer("broken", 0))
    reconciler.finalise()
    assert bench.job("broken")["state"] == "done"


def test_a_sink_that_is_gone_is_not_waited_for_for_ever(bench: Bench, reconciler: Reconciler, sink: Path) -> None:
    blocked = sink.parent / "file"
    blocked.write_text("not a folder")
    header = {**HEADER, "sink": f"file://{blocked}"}
    put(bench, "cancelled", "c", header=header)
    bench.run(bench.ledger.cancel("cancelled"))
    put(bench, "written", "c", header=header, seal=True)
    bench.begin("written", "c")
    bench.commit("written", "c", part="parts/c-1.ndjson")
    reconciler.finalise()
    assert not any("finished_at" in bench.job(job) for job in ("cancelled", "written")), "waited for"
    patience_ms = int(reconciler.context.settings.sink_patience_seconds * 1000)
    for job in ("cancelled", "written"):
        assert not bench.run(bench.ledger.records(job, "c"))
        bench.redis.hincrby(bench.keys.job(job), "sink_failed_at", -patience_ms)
        bench.run(bench.ledger.defer(job, 0))
    reconciler.finalise()
    assert all("finished_at" in bench.job(job) for job in ("cancelled", "written"))
    records = bench.run(bench.ledger.records("cancelled", "c"))
    assert {json.loads(record)["error"]["code"] for record in records.values()} == {"cancelled"}


def test_the_ends_are_written_by_one_process_at_a_time(bench: Bench, reconciler: Reconciler, sink: Path) -> None:
    put(bench, "j", "c")
    bench.run(bench.ledger.cancel("j"))
    other = SyncRunner(connect(reconciler.context.settings), bench.url)
    assert other.run(bench.ledger.hold("finaliser", "other", lease_ms=9999))
    reconciler.finalise()
    assert bench.members("queued") == ["j/c"]
    other.close()
    bench.redis.delete(bench.keys.lock("finaliser"))
    reconciler.finalise()
    assert bench.images() == (0, 0, 2)
