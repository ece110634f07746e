"""What may stand in a log line, whoever wrote it."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import pytest
import structlog

from classifleet.config import Settings
from classifleet.worker import logs
from classifleet.worker.scrubbing import MAX_CHARS, scrub

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("nothing to hide: 3 of 4", "nothing to hide: 3 of 4"),
        ("https://h.example/a/b.jpg", "https://h.example/a/b.jpg"),
        (f"GET https://h.example/a?X-Amz-Signature={SECRET}&x=1 failed", "GET https://h.example/a?redacted failed"),
        (f"'https://h.example/a.jpg?{SECRET}'", "'https://h.example/a.jpg?redacted'"),
        (f"https://h.example/a.jpg#{SECRET}", "https://h.example/a.jpg?redacted"),
        (f"https://user:{SECRET}@h.example/a.jpg", "https://h.example/a.jpg"),
        (f"HTTP://user:{SECRET}@h.example:8080/a.jpg", "HTTP://h.example:8080/a.jpg"),
        (f"https://{SECRET}@h.example/a.jpg", "https://h.example/a.jpg"),
        (f"redis://:{SECRET}@localhost:6379/0 did not answer", "redis://localhost:6379/0 did not answer"),
        (f"redis://:{SECRET}/x@y@localhost/0", "redis://localhost/0"),
        (f"amqps://u:{SECRET}@a;amqps://u:{SECRET}@b", "amqps://b"),
        ("http://127.0.0.1:8080/photo@2x.png", "http://127.0.0.1:8080/photo@2x.png"),
        ("http://h.example/photo@2x.png", "http://h.example/photo@2x.png"),
        (f"http://[::1]:80/photo@2x.png?{SECRET}", "http://[::1]:80/photo@2x.png?redacted"),
        (f"redis://:{SECRET}?#/@localhost/0", "redis://localhost/0"),
        ("s3://bucket/some/key.jpg", "s3://bucket/some/key.jpg"),
        (f"data:image/png;base64,{SECRET}+/= is no image", "data:redacted is no image"),
        (f"DATA:,{SECRET}", "data:redacted"),
        ("data:;sha256=1234", "data:;sha256=1234"),
        (f'"GET /a.jpg?sig={SECRET} HTTP/1.1" 403', '"GET /a.jpg?redacted HTTP/1.1" 403'),
        ("really? yes=no", "really? yes=no"),
        (f"two: http://a/?{SECRET}, http://b/?{SECRET}", "two: http://a/?redacted http://b/?redacted"),
    ],
)  # fmt: skip
def test_scrub(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed
    assert SECRET not in scrubbed
    assert scrub(scrubbed) == scrubbed


LONG = (
    "http://" + "a:" * 50_000,
    "?" * 100_000,
    "data:" * 20_000,
    "a@" * 50_000 + "://",
    "a." * 50_000,
    "a://" * 30_000,
)


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_no_text_takes_long(text: str) -> None:
    before = time.thread_time()
    scrub(text)
    scrub(f"{text}@b c")
    assert time.thread_time() - before < 2


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Reads what was said; afterwards logging is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield lambda: capsys.readouterr().err
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("classifleet").setLevel(logging.NOTSET)
    structlog.reset_defaults()


def everything() -> None:
    """Says a secret in every way that there is."""
    url = f"https://user:{SECRET}@h.example/a.jpg?sig={SECRET}"
    log = structlog.get_logger("classifleet.some.module")
    log.debug(
        "with values", url=url, parts=[url, (url,)], by={"ref": url}, data=SECRET.encode(), error=ValueError(url)
    )
    log.info("long", text="x" * 3 * MAX_CHARS)
    logging.getLogger("aiohttp.client").warning("cannot fetch %s", url)
    logging.getLogger("botocore").debug("signature %s", SECRET)
    logging.getLogger("kombu.transport").info("connected to %s", url)
    try:
        raise ValueError(f"no route to {url}")
    except ValueError:
        image_bytes = SECRET.encode()  # a local variable of a frame of the traceback
        log.exception("failed", size=len(image_bytes))
        logging.getLogger("celery").exception("failed there, too")
    warnings.warn(f"old-fashioned {url}", UserWarning, stacklevel=1)
    died = threading.Thread(target=lambda: int(url))
    died.start()
    died.join()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_line_has_a_secret(log_format: str, stderr: Callable[[], str]) -> None:
    logs.configure(Settings.load(log_format=log_format, log_level="debug"))
    everything()
    text = stderr()
    assert SECRET not in text
    for said in ("with values", "cannot fetch", "no route to", "old-fashioned", "not caught", "failed there, too"):
        assert said in text
    for unsaid in ("signature", "connected to"):
        assert unsaid not in text
    if log_format == "json":
        lines = [json.loads(line) for line in text.splitlines()]
        assert all({"event", "level", "logger", "timestamp"} <= line.keys() for line in lines)
        assert lines[0]["data"] == "6 bytes"
        assert len(lines[1]["text"]) < 2 * MAX_CHARS


def test_what_is_heard_on_level_error(stderr: Callable[[], str]) -> None:
    logs.configure(Settings.load(log_format="json", log_level="error"))
    everything()
    assert {json.loads(line)["level"] for line in stderr().splitlines()} == {"error", "critical"}
