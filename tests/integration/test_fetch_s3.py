"""The S3 reader against a real S3 server, and against servers that misbehave on purpose."""

import asyncio
import contextlib
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from classifleet.config import ErrorCode, ImageError, Settings, parse_reference
from classifleet.worker.ingest import Fetcher

IMAGE = b"\xff\xd8 an image " * 50_000


def fetch(settings_kwargs, *references, **options):
    """The bytes, or the error, of each reference, all fetched at one time."""

    async def scenario():
        fetcher = Fetcher(Settings.load(**settings_kwargs), read_blob=lambda *_: None)
        await fetcher.start()
        try:
            jobs = [fetcher.fetch(parse_reference(text), job="j", chunk="c", **options) for text in references]
            return await asyncio.gather(*jobs, return_exceptions=True)
        finally:
            await fetcher.close()

    return asyncio.run(scenario())


def code_of(result):
    assert isinstance(result, ImageError), result
    return result.code


@pytest.mark.parametrize("key", ["a.jpg", "folder/b c.jpg", "größe/图.jpg", "100%/a%2Fb+c?x=1#y", "~!*'()/&=;,"])
def test_an_object_is_read_under_any_key(s3, key):
    s3.client.put_object(Bucket=s3.bucket, Key=key, Body=IMAGE)
    assert fetch(s3.settings_kwargs, f"{s3.url}/{key}") == [IMAGE]


def test_many_objects_at_one_time(s3):
    for number in range(20):
        s3.client.put_object(Bucket=s3.bucket, Key=f"{number}.jpg", Body=bytes([number]) * 1000)
    results = fetch({**s3.settings_kwargs, "fetch_concurrency": 4}, *(f"{s3.url}/{n}.jpg" for n in range(20)))
    assert results == [bytes([number]) * 1000 for number in range(20)]


def test_what_is_not_there(s3):
    results = fetch(s3.settings_kwargs, f"{s3.url}/none.jpg", "s3://no-such-bucket/none.jpg")
    assert [code_of(result) for result in results] == [ErrorCode.NOT_FOUND] * 2


@pytest.mark.parametrize(("size", "fits"), [(1000, True), (1001, False)])
def test_the_size_is_limited(s3, size, fits):
    s3.client.put_object(Bucket=s3.bucket, Key="image", Body=bytes(size))
    (result,) = fetch({**s3.settings_kwargs, "max_bytes": 1000}, f"{s3.url}/image")
    assert result == bytes(size) if fits else code_of(result) is ErrorCode.TOO_LARGE


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials(s3, monkeypatch, variable):
    monkeypatch.setenv(variable, "wrong")
    (result,) = fetch(s3.settings_kwargs, f"{s3.url}/image")
    assert code_of(result) is ErrorCode.ACCESS_DENIED


def test_no_credentials(s3, monkeypatch):
    for variable in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(variable)
    (result,) = fetch(s3.settings_kwargs, f"{s3.url}/image")
    assert code_of(result) is ErrorCode.ACCESS_DENIED


def test_only_what_is_below_an_allowed_prefix_is_read(s3):
    keys = ["public/a", "public/deep/a", "public-not/a", "a", "exact"]
    for key in keys:
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"x")
    allowed = {**s3.settings_kwargs, "source_allow": [f"{s3.url}/public", f"{s3.url}/exact"]}
    others = [f"{s3.url}x/public/a", f"{s3.url}/public/../a", f"{s3.url}/public/./a", f"{s3.url}/public/.."]
    results = fetch(allowed, *(f"{s3.url}/{key}" for key in keys), *others)
    refused, invalid = ErrorCode.FORBIDDEN_SOURCE, ErrorCode.INVALID_REFERENCE
    assert results[:2] == [b"x"] * 2
    assert [code_of(results[2]), code_of(results[3])] == [refused] * 2
    assert results[4] == b"x"
    assert [code_of(result) for result in results[5:]] == [refused, invalid, invalid, invalid]


# Servers that misbehave


@contextlib.contextmanager
def impostor(answer):
    """An "S3 server" that answers every GET as it is told; yields settings, and the list of requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            requests.append(self.path)
            self.close_connection = True
            with contextlib.suppress(ConnectionError):
                answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # joined by server_close
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield {"s3_endpoint_url": f"http://127.0.0.1:{server.server_port}", "s3_path_style": True}, requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def refusing(status, code):
    def answer(handler):
        body = f"<Error><Code>{code}</Code><Message>signature=secret</Message></Error>".encode() if code else b""
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture
def credentials(monkeypatch, tmp_path):
    """Some, and nobody's configuration."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(
    ("status", "name", "code"),
    [
        (403, "AccessDenied", ErrorCode.ACCESS_DENIED),
        (403, "", ErrorCode.ACCESS_DENIED),
        (400, "ExpiredToken", ErrorCode.ACCESS_DENIED),
        (404, "", ErrorCode.NOT_FOUND),
        (403, "InvalidObjectState", ErrorCode.FETCH_FAILED),
        (400, "KeyTooLongError", ErrorCode.INVALID_REFERENCE),
        (400, "Whatever", ErrorCode.FETCH_FAILED),
        (503, "SlowDown", ErrorCode.FETCH_FAILED),
        (504, "", ErrorCode.FETCH_TIMEOUT),
        (400, "RequestTimeout", ErrorCode.FETCH_TIMEOUT),
    ],
)
def test_every_refusal_has_its_code(status, name, code):
    with impostor(refusing(status, name)) as (settings, requests):
        (result,) = fetch(settings, "s3://bucket/key")
    assert code_of(result) is code
    assert "secret" not in str(result)
    assert (len(requests) > 1) == (status >= 500 or name == "RequestTimeout")


@pytest.mark.usefixtures("credentials")
def test_a_body_without_a_declared_size_is_counted_while_it_streams():
    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1_000):
            handler.wfile.write(bytes(64 << 10))

    with impostor(answer) as (settings, _):
        (result,) = fetch({**settings, "max_bytes": 1 << 20}, "s3://bucket/key")
    assert code_of(result) is ErrorCode.TOO_LARGE


@pytest.mark.usefixtures("credentials")
def test_a_body_that_breaks_off():
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"half an image")

    with impostor(answer) as (settings, _):
        (result,) = fetch(settings, "s3://bucket/key")
    assert code_of(result) is ErrorCode.FETCH_FAILED


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("by_setting", [True, False])
def test_a_store_that_hangs_is_given_up_at_the_deadline(by_setting):
    released = threading.Event()
    setting, option = ({"fetch_timeout_seconds": 0.3}, {}) if by_setting else ({}, {"deadline_seconds": 0.3})
    with impostor(lambda _: released.wait(30)) as (settings, _):
        try:
            (result,) = fetch({**settings, **setting}, "s3://bucket/key", **option)
        finally:
            released.set()
    assert code_of(result) is ErrorCode.FETCH_TIMEOUT


@pytest.mark.usefixtures("credentials")
def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (result,) = fetch({"s3_endpoint_url": f"http://127.0.0.1:{port}"}, "s3://bucket/key")
    assert code_of(result) is ErrorCode.FETCH_FAILED
