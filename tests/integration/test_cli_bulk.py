"""`classifleet bulk` on a fleet that runs: sources, destinations, going on, retrying."""

import json
import signal

import pytest

from classifleet.producer import Fleet
from tests.cli_support import photos_or_skip, read_records, right_answers, started
from tests.support import wait_until

RIGHT = 87


@pytest.fixture
def bulk(cli, live_fleet):
    return lambda *arguments: cli("bulk", *arguments, "--broker-url", live_fleet.url)


@pytest.fixture
def aws(live_fleet, monkeypatch):
    """The fleet's S3 server as this process' own."""
    from tests.support.services import ACCESS_KEY, SECRET_KEY

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("CLASSIFLEET_S3_ENDPOINT_URL", live_fleet.s3.endpoint_url)
    monkeypatch.setenv("CLASSIFLEET_S3_PATH_STYLE", "true")
    return live_fleet.s3.client()


@pytest.fixture
def folder(tmp_path, photos):
    """Good photos at several depths, and some files that are none."""
    root = tmp_path / "uploads"
    (root / "2026" / "01").mkdir(parents=True)
    for name, photo in (("a.jpg", "coffee"), ("2026/b.jpg", "chelsea"), ("2026/01/c.jpg", "rocket")):
        (root / name).write_bytes((photos / f"{photo}.jpg").read_bytes())
    (root / "notes.txt").write_text("not a picture")
    (root / "empty.jpg").write_bytes(b"")
    return root


def ids(path):
    return sorted(record["id"] for record in read_records(path))


def wait_for_results(fleet, job):
    wait_until(lambda: job.id in {info.id for info in fleet.jobs()} and job.progress().done, "the first results", 30)


# The hundred photos


def test_a_hundred_photos_on_a_fleet_that_was_already_running(bulk, tmp_path, live_fleet):
    files = photos_or_skip()
    ended = bulk(files[0].parent, "--model", "imagenet", "--out", tmp_path / "out")
    assert ended.code == 0, ended
    records = read_records(tmp_path / "out" / "results.ndjson")
    names = [file.name for file in files]
    assert sorted(record["id"] for record in records) == names
    assert right_answers(records, names) >= RIGHT
    assert (tmp_path / "out" / "failures.ndjson").read_bytes() == b""
    with Fleet(live_fleet.url) as another:  # as another process would reattach
        progress = another.job(ended.job).progress()
        assert (progress.state, progress.ok) == ("done", 100)
        assert {result.id for result in another.job(ended.job).results()} == set(names)


def test_a_hundred_photos_from_s3_to_s3(bulk, aws, live_fleet):
    files = photos_or_skip()
    for file in files:
        aws.put_object(Bucket="sink-bucket", Key=f"uploads/{file.name}", Body=file.read_bytes())
    ended = bulk("s3://sink-bucket/uploads/", "--model", "imagenet", "--out", "s3://sink-bucket/nightly/")
    assert ended.code == 0, ended
    assert f"results are in s3://sink-bucket/nightly/{ended.job}/" in ended.err

    def get(name):
        return aws.get_object(Bucket="sink-bucket", Key=f"nightly/{ended.job}/{name}")["Body"].read()

    manifest = json.loads(get("manifest.json"))
    records = [json.loads(line) for part in manifest["parts"] for line in get(part["name"]).splitlines()]
    keys = [f"uploads/{file.name}" for file in files]
    assert sorted(record["id"] for record in records) == keys
    assert right_answers(records, keys) >= RIGHT
    assert get("failures.ndjson") == b""
    assert json.loads(get("summary.json"))["ok"] == 100


# Sources


def test_a_nested_folder_with_files_that_are_no_images(bulk, folder, tmp_path):
    out = tmp_path / "out"
    ended = bulk(folder, "--out", out)
    assert ended.code == 0, ended  # every file has its record
    assert ids(out / "results.ndjson") == ["2026/01/c.jpg", "2026/b.jpg", "a.jpg", "empty.jpg", "notes.txt"]
    assert ids(out / "failures.ndjson") == ["empty.jpg", "notes.txt"]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["images"], summary["ok"], summary["failed"]) == (5, 3, 2)
    assert sum(summary["by_code"].values()) == 2
    for code in summary["by_code"]:
        assert f"error: {code}" in ended.out
    assert ended.out.startswith(f"job {summary['job']}\n")


def test_fail_on_error_is_stricter(bulk, folder, tmp_path):
    assert bulk(folder, "--out", tmp_path / "a", "--fail-on-error").code == 1
    assert (
        bulk(folder, "--out", tmp_path / "b", "--fail-on-error", "--include", "*.jpg", "--exclude", "empty*").code == 0
    )
    assert ids(tmp_path / "b" / "results.ndjson") == ["2026/01/c.jpg", "2026/b.jpg", "a.jpg"]


def test_a_model_that_the_fleet_does_not_have_is_exit_code_1_and_a_line(bulk, folder, tmp_path):
    ended = bulk(folder, "--model", "cats", "--out", tmp_path / "out")
    assert ended.code == 1
    assert "error: no image was classified: the workers have no model cats; CLASSIFLEET_MODELS" in ended.err
    assert len(read_records(tmp_path / "out" / "results.ndjson")) == 5
    assert bulk(folder, "--model", "cats", "--out", tmp_path / "out", "--job", ended.job).code == 1
    assert bulk(folder, "--models", "cats,imagenet", "--out", tmp_path / "both").code == 0


def test_a_file_that_cannot_be_sent_has_a_record_and_is_named(bulk, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_MAX_BYTES", str((folder / "a.jpg").stat().st_size - 1))
    ended = bulk(folder, "--include", "a.jpg", "--include", "notes.txt", "--out", tmp_path / "out")
    assert ended.code == 0
    assert f"{folder}/a.jpg cannot be sent: it has more than" in ended.err
    [record] = [r for r in read_records(tmp_path / "out" / "results.ndjson") if r["id"] == "a.jpg"]
    assert record["error"]["code"] == "forbidden_source"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("list.txt", ["{web}/coffee.jpg", "", "uploads/a.jpg", "uploads/none.jpg"]),
        ("list.csv", ["id,url", "1,{web}/coffee.jpg", "3,uploads/a.jpg", "4,uploads/none.jpg"]),
        ("list.jsonl", ['{{"id": 1, "ref": "{web}/coffee.jpg"}}', "", '"uploads/a.jpg"', '"uploads/none.jpg"']),
    ],
)
def test_manifests(bulk, folder, tmp_path, live_fleet, name, lines):
    (tmp_path / name).write_text("".join(line.format(web=live_fleet.web) + "\n" for line in lines))
    ended = bulk(tmp_path / name, "--out", tmp_path / "out", "--top-k", "2")
    assert ended.code == 0, ended
    records = {record["id"]: record for record in read_records(tmp_path / "out" / "results.ndjson")}
    assert set(records) == {"1", "3", "4"}
    assert [records[n]["models"]["imagenet@1"]["top"] for n in ("1", "3")] == ["espresso", "espresso"]
    assert len(records["1"]["models"]["imagenet@1"]["predictions"]) == 2
    assert records["4"]["status"] == "error"
    assert "none.jpg cannot be sent: No such file or directory" in ended.err


def test_meta_of_a_manifest_comes_back(bulk, tmp_path, live_fleet):
    row = {"id": "x", "ref": f"{live_fleet.web}/coffee.jpg", "meta": {"owner": "me"}}
    (tmp_path / "list.jsonl").write_text(json.dumps(row))
    bulk(tmp_path / "list.jsonl", "--out", tmp_path / "out", "--scores", "all")
    [record] = read_records(tmp_path / "out" / "results.ndjson")
    assert record["meta"] == {"owner": "me"}
    assert len(record["models"]["imagenet@1"]["predictions"]) == 1000


# What is wrong is said before anything starts


def test_errors_come_before_anything_is_started(cli, tmp_path, folder):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "bad.csv").write_text("id,picture\n")
    out = tmp_path / "out"
    for arguments, message in (
        ([tmp_path / "missing", "--out", out], "there is no such folder or manifest"),
        ([tmp_path / "nothing", "--out", out], "there is no image to classify"),
        ([folder, "--include", "*.gif", "--out", out], "there is no image to classify"),
        ([tmp_path / "bad.csv", "--out", out], "its first line names no column"),
        ([folder / "a.jpg", "--out", out], "for single images there is `classifleet classify`"),
        ([folder, "--out", folder], "is the source and the destination"),
        ([folder, "--out", folder / "a.jpg"], "it is a file, and a folder is needed"),
        ([folder, "--out", "ftp://host/x"], "neither a folder nor s3://bucket/prefix nor file:///folder"),
        ([folder, "--out", out, "--job", "../x"], "the job id '../x' is not valid"),
        ([folder, "--out", out, "--models", "A"], "models.0"),
        ([folder, "--out", out, "--retry-failed"], "holds no results of an earlier run"),
        ([folder, "--out", f"file://{out}", "--retry-failed"], "name the job with --job"),
    ):
        ended = cli("bulk", *arguments)
        assert message in ended.error
        assert "starting" not in ended.err
        assert ended.out == ""
    assert not out.exists()


# Sinks


def test_a_file_sink_is_written_by_the_workers(bulk, folder, live_fleet):
    sink = f"file://{live_fleet.sinks}/deep"
    ended = bulk(folder, "--out", sink)
    assert ended.code == 0, ended
    written = live_fleet.sinks / "deep" / ended.job
    manifest = json.loads((written / "manifest.json").read_text())
    records = [record for part in manifest["parts"] for record in read_records(written / part["name"])]
    assert len(records) == 5
    assert ids(written / "failures.ndjson") == ["empty.jpg", "notes.txt"]
    assert json.loads((written / "summary.json").read_text())["complete"] is True


def test_a_sink_that_the_workers_may_not_write_is_every_images_error(bulk, folder, tmp_path):
    ended = bulk(folder, "--out", f"file://{tmp_path}/elsewhere")
    assert ended.code == 0  # every image has a record: in Redis
    assert "error: forbidden_source" in ended.out


# Going on


@pytest.fixture
def slowly(monkeypatch):
    """The producer waits for the workers all the time, so that there is something to interrupt."""
    monkeypatch.setenv("CLASSIFLEET_CHUNK_SIZE", "2")
    monkeypatch.setenv("CLASSIFLEET_SUBMISSION_WINDOW", "2")


@pytest.fixture
def many(tmp_path, photos):
    """A hundred real photos."""
    folder = tmp_path / "many"
    folder.mkdir()
    originals = sorted(photos.iterdir())
    for number in range(100):
        (folder / f"{number:03d}.jpg").write_bytes(originals[number % len(originals)].read_bytes())
    return folder


@pytest.mark.usefixtures("slowly")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_command_that_was_stopped_is_gone_on_with_exactly_once(cli, live_fleet, many, tmp_path, number):
    out = tmp_path / "out"
    arguments = [many, "--out", out, "--broker-url", live_fleet.url]
    with started(tmp_path, "bulk", *arguments) as command, Fleet(live_fleet.url) as fleet:
        job = fleet.job(command.job)
        wait_for_results(fleet, job)
        command.signal(number)
        ended = command.ended()
        stopped = job.progress()
        assert stopped.state == "open"
        assert stopped.accepted < 100
        if number != signal.SIGKILL:
            assert ended.code == (130 if number == signal.SIGINT else 143)
            assert f"classifleet jobs wait {job.id}" in ended.err
            assert f"with --job {job.id}" in ended.err
            assert "Traceback" not in ended.err
            assert list(out.iterdir()) == []
        again = cli("bulk", *arguments, "--job", job.id)
        assert again.code == 0, again
        assert again.job == job.id
        assert ids(out / "results.ndjson") == [f"{n:03d}.jpg" for n in range(100)]
        progress = job.progress()
        assert (progress.accepted, progress.done, progress.state) == (100, 100, "done")


def test_a_job_that_has_ended_is_not_done_again(bulk, folder, tmp_path):
    first = bulk(folder, "--out", tmp_path / "out", "--job", "named-1")
    before = (tmp_path / "out" / "results.ndjson").read_bytes()
    again = bulk(folder, "--out", tmp_path / "out", "--job", "named-1")
    assert (first.code, again.code) == (0, 0)
    assert "job named-1 has ended; its results are in" in again.err
    assert (tmp_path / "out" / "results.ndjson").read_bytes() == before


def test_results_of_a_job_that_has_ended_can_be_collected_elsewhere(bulk, folder, tmp_path):
    job = bulk(folder, "--out", tmp_path / "out").job
    assert bulk(folder, "--out", tmp_path / "copy", "--job", job).code == 0
    assert ids(tmp_path / "copy" / "results.ndjson") == ids(tmp_path / "out" / "results.ndjson")


@pytest.mark.usefixtures("slowly")
def test_a_source_that_has_changed_since_is_one_clear_error(cli, live_fleet, many, tmp_path):
    arguments = [many, "--out", tmp_path / "out", "--broker-url", live_fleet.url]
    with started(tmp_path, "bulk", *arguments) as command, Fleet(live_fleet.url) as fleet:
        job = fleet.job(command.job)
        wait_for_results(fleet, job)
        command.signal(signal.SIGINT)
        command.wait()
        (many / "000.jpg").unlink()
        error = cli("bulk", *arguments, "--job", job.id).error
        assert "was begun with another source, models or options, or the source has changed since" in error
        job.cancel()


@pytest.mark.usefixtures("slowly")
def test_a_cancelled_job_is_exit_code_1(live_fleet, many, tmp_path):
    arguments = [many, "--out", tmp_path / "out", "--broker-url", live_fleet.url]
    with started(tmp_path, "bulk", *arguments) as command, Fleet(live_fleet.url) as fleet:
        job = fleet.job(command.job)
        wait_for_results(fleet, job)
        assert job.cancel()
        ended = command.ended()
    assert ended.code == 1
    assert "was cancelled before all images were submitted" in ended.err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["complete"] is False


def test_a_broker_that_is_away_is_one_line(cli, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_CONNECT_TIMEOUT_SECONDS", "0.5")
    ended = cli("bulk", folder, "--out", tmp_path / "out", "--broker-url", "redis://127.0.0.1:1/0")
    assert "redis://127.0.0.1:1/0 did not answer" in ended.error


# Retrying


@pytest.mark.parametrize("to_sink", [False, True])
def test_retry_failed_does_what_failed_again_and_nothing_else(bulk, folder, tmp_path, live_fleet, photos, to_sink):
    out = f"file://{live_fleet.sinks}/retry" if to_sink else str(tmp_path / "out")
    arguments = [folder, "--out", out]
    first = bulk(*arguments)
    naming = ["--job", first.job] if to_sink else []
    assert "was for --models imagenet" in bulk(*arguments, *naming, "--retry-failed", "--model", "nsfw").error

    (folder / "notes.txt").write_bytes((photos / "coffee.jpg").read_bytes())
    (folder / "empty.jpg").unlink()
    second = bulk(*arguments, *naming, "--retry-failed")
    assert second.code == 0, second
    assert second.job == f"{first.job}-retry-1"
    assert "1 images that had failed are no longer in" in second.err
    with Fleet(live_fleet.url) as fleet:
        assert [result.id for result in fleet.job(second.job).results()] == ["notes.txt"]
    if to_sink:
        assert json.loads((live_fleet.sinks / "retry" / second.job / "summary.json").read_text())["ok"] == 1
        return
    records = {record["id"]: record for record in read_records(tmp_path / "out" / "results.ndjson")}
    assert len(records) == 5
    assert records["notes.txt"]["status"] == "ok"
    assert ids(tmp_path / "out" / "failures.ndjson") == ["empty.jpg"]
    third = bulk(*arguments, "--retry-failed")
    assert "there is no image to classify" in third.error


def test_when_nothing_failed_there_is_nothing_to_retry(bulk, folder, tmp_path):
    arguments = [folder, "--include", "a.jpg", "--out", tmp_path / "out"]
    bulk(*arguments)
    again = bulk(*arguments, "--retry-failed")
    assert (again.code, again.out) == (0, "")
    assert "nothing failed" in again.err
