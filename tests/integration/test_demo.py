"""`classifleet demo`: something a person is glad to see, and nothing left behind."""

import json
import socket

import pytest

from classifleet.producer import ErrorCode
from classifleet.producer.cli import _demo_stage
from tests.cli_support import CTRL_C, OnTerminal, is_alive, started
from tests.support import wait_until
from tests.support.services import s3_executable

IMAGES = 12


@pytest.fixture(autouse=True)
def _zoo(zoo, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_MODEL_REPOSITORY", str(zoo))


def test_it_shows_every_way_and_where_the_results_are(tmp_path, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_BROKER_URL", "redis://203.0.113.1:1/0")  # it uses a fleet of its own
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-other-keys")
    with started(tmp_path, "demo", "--out", tmp_path / "out", "--images", IMAGES) as command:
        command.children()
        ended = command.ended()
    assert ended.code == 0, ended
    for way in ("URL", "base64", "file", *(["S3 object"] if s3_executable() else [])):
        assert f"given as {way}\n" in ended.out
    for seen in ("Egyptian cat", "espresso", "sfw", "forward", "images/s", "█"):
        assert seen in ended.out
    assert f"{IMAGES} of {IMAGES} images answered by 2 models each" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    [job] = (tmp_path / "out").iterdir()
    manifest = json.loads((job / "manifest.json").read_text())
    assert manifest["images"]["ok"] == IMAGES
    assert "classifleet_images_total" in (job / "metrics.txt").read_text()
    assert str(job) in "".join(ended.out.split())


def test_its_worker_reaches_the_demos_own_web_server_and_no_other_port(tmp_path, monkeypatch):
    monkeypatch.setattr(_demo_stage, "weed_binary", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as other, _demo_stage.set_the_stage(tmp_path, ["nsfw"]) as stage:
        other.setblocking(False)
        webs = (stage.web, f"http://127.0.0.1:{other.getsockname()[1]}")
        own, elsewhere = (stage.fleet.submit(f"{web}/{stage.photos[0].name}", models="nsfw") for web in webs)
        assert own.result(60).ok
        assert elsewhere.result(60).error.code is ErrorCode.FORBIDDEN_ADDRESS
        with pytest.raises(BlockingIOError):  # nobody has called
            other.accept()


def test_ctrl_c_leaves_no_process(tmp_path):
    with OnTerminal("demo", "--out", tmp_path / "out") as command:
        wait_until(lambda: "imagenet@1: loading" in command.screen, "the models to load", 60)
        command.press(CTRL_C)
        assert command.process.wait(20) == 130
        assert len(command.seen) >= 2  # Redis, the worker, an S3 server
        wait_until(lambda: not [pid for pid in command.seen if is_alive(pid)], "the end of all children")
    assert "Traceback" not in command.screen


def test_without_its_photos_it_says_what_to_install(cli, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skimage" else real(name))
    assert "pip install 'classifleet[demo]'" in cli("demo").error
