"""`classifleet classify`, on a real fleet and on one of its own."""

import base64
import signal

import pytest
from PIL import Image
from redis import Redis

from classifleet.config import Keys, data_reference
from classifleet.ledger import Ledger, SyncRunner
from classifleet.producer import Fleet
from classifleet.producer.cli import _progress
from classifleet.producer.formats import FORMATS
from tests.cli_support import descendants, started
from tests.support import wait_until
from tests.support.services import ACCESS_KEY, SECRET_KEY


@pytest.fixture
def classify(cli, live_fleet):
    return lambda *arguments: cli("classify", *arguments, "--broker-url", live_fleet.url)


@pytest.fixture
def missing(live_fleet):
    """A reference that leads nowhere."""
    return f"{live_fleet.web}/missing.jpg"


def test_an_image_given_in_every_way(classify, live_fleet):
    client = live_fleet.s3.client()
    client.put_object(Bucket="sink-bucket", Key="in/rocket.jpg", Body=(live_fleet.photos / "rocket.jpg").read_bytes())
    refs = [
        live_fleet.photos / "chelsea.jpg",
        f"{live_fleet.web}/coffee.jpg",
        data_reference((live_fleet.photos / "chelsea.jpg").read_bytes()),
        "s3://sink-bucket/in/rocket.jpg",
        f"file://{live_fleet.photos}/coffee.jpg",
    ]
    ended = classify(*refs, "--json")
    assert ended.code == 0, ended
    tops = [record["models"]["imagenet@1"]["top"] for record in ended.records]
    assert [tops[1], tops[4]] == ["espresso", "espresso"]
    assert [record["id"] for record in ended.records][:2] == [str(refs[0]), refs[1]]
    assert ended.records[2]["id"].startswith("data:;sha256=")
    assert tops[0] == tops[2] != tops[3]


def test_a_table_fits_into_80_columns(classify, live_fleet, missing):
    ended = classify(live_fleet.photos / "coffee.jpg", missing, "--models", "imagenet,nsfw")
    assert ended.code == 1
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "espresso" in ended.out
    assert "sfw" in ended.out
    assert "not_found" in ended.out


def test_one_image_is_shown_in_full_with_as_many_classes_as_asked_for(classify, live_fleet):
    ended = classify(live_fleet.photos / "coffee.jpg", "--top-k", "7")
    assert ended.code == 0
    assert len([line for line in ended.out.splitlines() if "░" in line or "█" in line]) == 7
    assert "forward" in ended.out


@pytest.mark.parametrize("shape", FORMATS)
def test_every_format_prints_a_line_for_each_answer(classify, live_fleet, shape):
    ended = classify(live_fleet.photos / "coffee.jpg", "--models", "imagenet,nsfw", "--format", shape)
    assert ended.code == 0, ended
    assert len(ended.records) == (2 if FORMATS[shape].one_model else 1)
    if shape == "label_map":
        assert len(ended.records[0]) == 1000
        assert max(ended.records[0], key=ended.records[0].get) == "espresso"
    if shape == "mlkit":
        assert ended.records[0][0]["text"] == "espresso"


@pytest.mark.parametrize("shape", FORMATS)
def test_an_image_that_fails_is_exit_code_1_and_the_reason_in_words(classify, live_fleet, missing, shape):
    ended = classify(live_fleet.photos / "coffee.jpg", missing, "--format", shape)
    assert ended.code == 1
    if FORMATS[shape].one_model:
        assert len(ended.records) == 1
        [line] = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        assert missing in line
        assert line.endswith("(not_found)")
    else:
        assert len(ended.records) == 2
        assert "404" in ended.out
        assert "error: " not in ended.err


def test_pictures_are_saved_with_their_labels(classify, live_fleet, missing, tmp_path):
    folder = tmp_path / "deep" / "labelled"
    (tmp_path / "broken.jpg").write_bytes((live_fleet.photos / "coffee.jpg").read_bytes()[:5000])
    ended = classify(
        live_fleet.photos / "coffee.jpg",
        f"{live_fleet.web}/rocket.jpg",
        missing,
        f"data:;base64,{base64.b64encode((live_fleet.photos / 'chelsea.jpg').read_bytes()).decode()}",
        "--save",
        folder,
    )
    assert ended.code == 1
    assert sorted(path.name for path in folder.iterdir()) == ["001-coffee.jpg", "002-rocket.jpg", "004-image.jpg"]
    with Image.open(live_fleet.photos / "coffee.jpg") as before, Image.open(folder / "001-coffee.jpg") as after:
        assert after.height > before.height
    assert f"not saved: {missing} has no answer" in ended.err


def test_what_cannot_be_saved_does_not_keep_the_rest(classify, live_fleet, tmp_path):
    (tmp_path / "001-coffee.jpg").mkdir()
    ended = classify(live_fleet.photos / "coffee.jpg", live_fleet.photos / "rocket.jpg", "--save", tmp_path)
    assert ended.code == 1
    assert "error: not saved: " in ended.err
    assert (tmp_path / "002-rocket.jpg").is_file()


def test_the_same_image_twice_is_answered_twice(classify, live_fleet):
    photo = live_fleet.photos / "coffee.jpg"
    assert len(classify(photo, photo, "--json").records) == 2


def test_what_is_wrong_is_said_before_anything_starts(cli, live_fleet):
    photo = live_fleet.photos / "coffee.jpg"
    for arguments, message in (
        (["missing.jpg"], "there is no such file, and it is not a URL"),
        ([live_fleet.photos], "use `classifleet bulk"),
        ([photo, "--models", ""], "models"),
        ([photo, "--models", "Imagenet"], "models.0"),
        ([photo, "--top-k", "99999"], "top_k"),
    ):
        ended = cli("classify", *arguments)  # without a fleet: one would be started
        assert message in ended.error
        assert "starting" not in ended.err


def test_a_model_that_the_fleet_does_not_have_is_the_images_error(classify, live_fleet):
    ended = classify(live_fleet.photos / "coffee.jpg", "--models", "imagenet,cats")
    assert ended.code == 1
    assert "model_not_found" in ended.out
    assert "espresso" in ended.out


def test_when_no_image_has_a_model_there_is_a_line(classify, live_fleet):
    ended = classify(live_fleet.photos / "coffee.jpg", "data:,x", "--models", "cats,dogs", "--json")
    assert ended.code == 1
    [line] = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert "no image was classified: the workers have no model cats, dogs;" in line


def test_a_version_of_an_s3_object_is_the_one_that_is_saved(classify, live_fleet, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("CLASSIFLEET_S3_ENDPOINT_URL", live_fleet.s3.endpoint_url)
    monkeypatch.setenv("CLASSIFLEET_S3_PATH_STYLE", "true")
    client = live_fleet.s3.client()
    client.create_bucket(Bucket="versions")
    client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    first, _ = (
        client.put_object(Bucket="versions", Key="a.jpg", Body=(live_fleet.photos / name).read_bytes())["VersionId"]
        for name in ("coffee.jpg", "motorcycle_left.jpg")
    )
    ended = classify(f"s3://versions/a.jpg?versionId={first}", "--json", "--save", tmp_path)
    assert ended.code == 0, ended
    assert ended.records[0]["models"]["imagenet@1"]["top"] == "espresso"
    with Image.open(live_fleet.photos / "coffee.jpg") as right, Image.open(tmp_path / "001-a.jpg") as saved:
        assert saved.width == right.width
    ended = classify("s3://versions/a.jpg?versionId=none-such", "s3://versions/a.jpg", "--save", tmp_path)
    assert ended.code == 1


def test_without_a_worker_it_gives_up_in_words_and_leaves_nothing_queued(cli, redis_url, photos, monkeypatch):
    monkeypatch.setattr(_progress, "NO_WORKER_SECONDS", 0.0)
    ended = cli("classify", photos / "coffee.jpg", "--timeout", "0.7", "--broker-url", redis_url)
    assert ended.error == (
        "gave up after 0.7 s: no worker took anything from classify.default.interactive; start one with "
        "`classifleet worker` (same CLASSIFLEET_BROKER_URL)"
    )
    assert "no worker has taken anything from classify.default.interactive" in ended.err
    with Fleet(redis_url) as fleet:
        [job] = fleet.jobs()
        assert job.progress.state == "cancelled"


def test_a_worker_that_takes_its_time_is_waited_for_longer(cli, redis_url, photos, monkeypatch):
    refs = [photos / "coffee.jpg", "data:,x"]
    with Fleet(redis_url) as fleet, Redis.from_url(redis_url) as client:
        fleet.submit("data:,x", models="imagenet", id="at-work")
        begin = Ledger(Keys("default")).begin(
            "at-work", "00000000", "w1", lease_ms=60_000, latest={}, queue="classify.default.interactive", grant="g"
        )
        SyncRunner(client, redis_url).run(begin)
        ended = cli("classify", *refs, "--timeout", "0.7", "--broker-url", redis_url)
    assert ended.error == "gave up after 0.7 s: 0 of 2 images are answered; --timeout waits longer"


def test_without_a_broker_it_starts_a_fleet_for_the_command_and_builds_the_model(cli, photos, monkeypatch, tmp_path):
    monkeypatch.setenv("CLASSIFLEET_MODEL_REPOSITORY", str(tmp_path / "models"))
    ended = cli("classify", photos / "coffee.jpg", f"file://{photos}/rocket.jpg", "--model", "imagenet", "--json")
    assert ended.code == 0, ended
    assert len(ended.records) == 2  # what building says does not get between the answers
    assert ended.records[0]["models"]["imagenet@1"]["top"] == "espresso"
    assert "no broker is configured: starting an embedded Redis and a worker for this command" in ended.err
    assert f"building the model imagenet into {tmp_path}/models (once)" in ended.err
    assert "model imagenet@1: ready" in ended.err


def test_ctrl_c_while_the_models_load_leaves_no_process(zoo, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_MODEL_REPOSITORY", str(zoo))
    with started(tmp_path, "classify", photos / "coffee.jpg") as command:
        wait_until(lambda: "imagenet@1: loading" in command.err, "the model to load", 60)
        command.signal(signal.SIGINT)
        assert command.wait(20) == 130
        assert len(command.seen) >= 2
        command.require_no_children()
        assert "Traceback" not in command.err


def test_ctrl_c_before_the_worker_runs_leaves_no_process(zoo, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_MODEL_REPOSITORY", str(zoo))
    with started(tmp_path, "classify", photos / "coffee.jpg") as command:
        wait_until(lambda: descendants(command.process.pid), "the first child", 30)
        command.signal(signal.SIGINT)
        assert command.wait(20) == 130
        command.require_no_children()


def test_an_embedded_worker_that_cannot_start_is_one_line(cli, zoo, photos, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_MODEL_REPOSITORY", str(zoo))
    error = cli("classify", photos / "coffee.jpg", "--model", "cats").error
    assert error == f"the worker did not start: {zoo} has no model cats; it has imagenet@1, nsfw@1"
