"""Where `bulk` puts records."""

import json

import pytest

from classifleet.config import InvalidRequest, Settings, StorageError
from classifleet.producer import Progress, Result
from classifleet.producer.cli._destination import local_folder, open_destination

ANSWER = {"status": "ok", "kind": "single", "predictions": [], "truncated": True, "top": "cat", "confidence": 0.9}
ERROR = {"code": "not_found", "message": "there is nothing", "retryable": False}
PROGRESS = Progress(2, 2, 2, 2, 0, 0, {}, 7.0, 0.0, "done", True)


def result(name, *, error=None, job="j"):
    record = {"v": 1, "id": name, "job": job, "ref": "", "status": "error" if error else "ok", "models": {}}
    record |= {"error": error} if error else {"models": {"m@1": ANSWER}}
    return Result.from_record({**record, "attempt": 1, "worker": "w", "timings_ms": {}, "finished_at": ""})


class Job:
    """As much of a job as a collector needs."""

    def __init__(self, name, results=()):
        self.id = name
        self._results = list(results)

    def results(self, *, follow):
        assert not follow
        return iter(self._results)


def open_(text):
    return open_destination(str(text), Settings.load())


def run(destination, job, results, *, merge=False):
    with destination.collect(job, merge=merge) as collector:
        if collector.reads:
            collector.take(results)
        return collector.finish(Job(job, results), PROGRESS, {"models": ["m"], "complete": True})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_gets_results_failures_and_a_summary(tmp_path):
    out = tmp_path / "deep" / "out"
    destination = open_(out)
    destination.prepare()
    progress = run(destination, "j1", [result("a"), result("b", error=ERROR)])
    assert [r["id"] for r in lines(out / "results.ndjson")] == ["a", "b"]
    assert [(r["id"], r["error"]["code"]) for r in lines(out / "failures.ndjson")] == [("b", "not_found")]
    summary = json.loads((out / "summary.json").read_text())
    assert summary == {
        "job": "j1",
        "models": ["m"],
        "complete": True,
        "state": "done",
        "images": 2,
        "ok": 1,
        "partial": 0,
        "failed": 1,
        "by_code": {"not_found": 1},
        "images_per_second": 7.0,
    }
    assert (progress.ok, progress.failed, progress.by_code) == (1, 1, {"not_found": 1})
    assert sorted(path.name for path in out.iterdir()) == ["failures.ndjson", "results.ndjson", "summary.json"]
    assert destination.last_job() == "j1"
    assert destination.failed("j1") == ["b"]
    assert destination.summary("j1") == summary
    assert destination.summary("j2") is None


def test_a_retry_replaces_the_records_that_it_has_and_keeps_all_others(tmp_path):
    destination = open_(tmp_path)
    run(destination, "j", [result("a"), result("b", error=ERROR), result("c", error=ERROR)])
    progress = run(destination, "j-retry-1", [result("b", job="j-retry-1")], merge=True)
    records = {r["id"]: r for r in lines(tmp_path / "results.ndjson")}
    assert {name: r["job"] for name, r in records.items()} == {"a": "j", "b": "j-retry-1", "c": "j"}
    assert [r["id"] for r in lines(tmp_path / "failures.ndjson")] == ["c"]
    assert (progress.accepted, progress.ok, progress.failed) == (3, 2, 1)
    assert destination.last_job() == "j-retry-1"


def test_a_run_that_does_not_finish_leaves_the_earlier_one_alone(tmp_path):
    destination = open_(tmp_path)
    run(destination, "j", [result("a")])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with destination.collect("k", merge=False) as collector:
        collector.take([result("b")])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_sink_gets_the_failures_and_the_summary_beside_the_parts(tmp_path):
    destination = open_(f"file://{tmp_path}/")
    assert destination.sink == f"file://{tmp_path}"
    progress = Progress(2, 2, 2, 1, 0, 1, {"not_found": 1}, 7.0, 0.0, "done", True)
    results = [result("a"), result("b", error=ERROR)]
    with destination.collect("j", merge=False) as collector:
        assert not collector.reads
        collector.finish(Job("j", results), progress, {"models": ["m"], "complete": True})
    assert [r["id"] for r in lines(tmp_path / "j" / "failures.ndjson")] == ["b"]
    assert json.loads((tmp_path / "j" / "summary.json").read_text())["by_code"] == {"not_found": 1}
    assert destination.failed("j") == ["b"]
    assert destination.where("j") == f"file://{tmp_path}/j/"
    assert destination.last_job() is None


def test_a_sink_that_this_machine_may_not_write_is_a_note(tmp_path, capsys):
    destination = open_(f"file://{tmp_path}")
    (tmp_path / "j").write_text("in the way")
    run(destination, "j", [])
    assert "failures.ndjson and summary.json are not written" in capsys.readouterr().err


def test_a_file_is_no_destination(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest, match="it is a file, and a folder is needed"):
        open_(tmp_path / "file").prepare()


def test_other_schemes_are_refused():
    with pytest.raises(InvalidRequest, match="gs://bucket"):
        open_("gs://bucket/x")


def test_a_summary_of_someone_else_is_not_taken_for_ours(tmp_path):
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(StorageError, match="not one that `classifleet bulk` wrote"):
        open_(tmp_path).last_job()


def test_the_folder_of_a_destination(tmp_path):
    assert local_folder("s3://bucket/x") is None
    assert local_folder(f"file://{tmp_path}") == local_folder(str(tmp_path)) == tmp_path
