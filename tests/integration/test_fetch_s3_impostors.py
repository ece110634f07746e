"""The S3 reader against servers that misbehave on purpose, or are not there."""

import asyncio
import contextlib
import os
import socket
import ssl
import threading
import time

import pytest

from classifleet.config import ErrorCode, ImageError, Settings
from classifleet.worker.ingest.s3_boto import BotoCall, make_client
from classifleet.worker.ingest.s3_obstore import address_bucket
from tests.support.s3 import CLIENTS, code_of, fetch, impostor, refusing, result_of, started
from tests.support.waiting import wait_until_async


@pytest.fixture
def credentials(monkeypatch, tmp_path):
    """Some, and nobody's configuration."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "key", ["../a", "a/../../b", "./a", "..", "a/.", "a\\..\\b", "a/..\\b", "nul\x00", "\ud800", "k" * 1025, "é" * 513]
)
def test_a_key_that_may_mean_something_else_is_refused_without_asking(client, key):
    def never(_):
        raise AssertionError("asked")

    with impostor(never) as (settings, requests):
        with pytest.raises(ImageError) as caught:
            raise fetch({**settings, "s3_client": client}, f"s3://bucket/{key}")[0]
        assert caught.value.code is ErrorCode.INVALID_REFERENCE
        assert requests == []


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
        (429, "", ErrorCode.FETCH_FAILED),
        (400, "Throttling", ErrorCode.FETCH_FAILED),
        (500, "InternalError", ErrorCode.FETCH_FAILED),
        (405, "MethodNotAllowed", ErrorCode.NOT_FOUND),
        (504, "", ErrorCode.FETCH_TIMEOUT),
        (400, "RequestTimeout", ErrorCode.FETCH_TIMEOUT),
    ],
)
@pytest.mark.parametrize("client", CLIENTS)
def test_every_refusal_has_its_code(status, name, code, client):
    with impostor(refusing(status, name)) as (settings, requests):
        (result,) = fetch({**settings, "s3_client": client}, "s3://bucket/key")
    assert code_of(result) is code
    assert "secret" not in str(result)
    again = status in (429, 500, 503, 504) or name in ("RequestTimeout", "Throttling")
    assert len(requests) == (3 if again else 1)


@pytest.mark.usefixtures("credentials")
def test_a_body_without_a_declared_size_is_counted_while_it_streams():
    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1_000):
            handler.wfile.write(bytes(64 << 10))

    with impostor(answer) as (settings, _):  # obstore takes none without a size: boto3 reads it
        (result,) = fetch({**settings, "max_bytes": 1 << 20}, "s3://bucket/key")
    assert code_of(result) is ErrorCode.TOO_LARGE


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("client", CLIENTS)
def test_a_body_that_breaks_off(client):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"half an image")

    with impostor(answer) as (settings, _):
        (result,) = fetch({**settings, "s3_client": client}, "s3://bucket/key")
    assert code_of(result) is ErrorCode.FETCH_FAILED


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("drips", [True, False])
@pytest.mark.parametrize("by_setting", [True, False])
def test_a_store_that_hangs_is_given_up_at_the_deadline_and_holds_no_thread(client, drips, by_setting, monkeypatch):
    """boto3's thread is free soon after; obstore has none, and the server sees its connection end."""
    monkeypatch.setattr("classifleet.worker.ingest.s3_boto.IDLE_SECONDS", 1.0)
    released, ended, read = threading.Event(), [], BotoCall.read
    setting, option = ({"fetch_timeout_seconds": 0.4}, {}) if by_setting else ({}, {"deadline_seconds": 0.4})

    def recording_read(call):
        try:
            return read(call)
        finally:
            ended.append("thread")

    monkeypatch.setattr(BotoCall, "read", recording_read)

    def answer(handler):
        if "warm" in handler.path:
            return refusing(404, "NoSuchKey")(handler)
        if drips:
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
        handler.connection.settimeout(0.02)
        try:
            while not released.is_set():
                if drips:
                    handler.wfile.write(b".")
                with contextlib.suppress(TimeoutError):
                    if not handler.connection.recv(1):
                        break
        finally:
            ended.append("connection")

    async def scenario(settings):
        async with started(settings) as fetcher:
            for _ in range(50):  # until the client is made, which takes its time
                if code_of(await result_of(fetcher, "s3://bucket/warm")) is ErrorCode.NOT_FOUND:
                    break
            ended.clear()
            begun = time.monotonic()
            assert code_of(await result_of(fetcher, "s3://bucket/key", **option)) is ErrorCode.FETCH_TIMEOUT
            assert time.monotonic() - begun < 2  # of 0.4 s
            await wait_until_async(lambda: ended, "nobody listens any more", timeout=3.0)
            assert time.monotonic() - begun < 4
            assert ended[0] == "thread" or client == "auto" or not drips

    with impostor(answer) as (settings, _):
        try:
            asyncio.run(scenario({**settings, **setting, "s3_client": client}))
        finally:
            released.set()


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("client", CLIENTS)
def test_a_bucket_that_lives_elsewhere_is_left_to_boto3(client):
    with impostor(refusing(301, "PermanentRedirect")) as (settings, requests):
        results = fetch({**settings, "s3_client": client}, "s3://bucket/key")
    assert code_of(results[0]) is ErrorCode.FETCH_FAILED
    assert requests


@pytest.mark.parametrize(
    ("url", "bucket", "endpoint", "virtual"),
    [
        ("https://photos.s3.example/key?X-Amz=1", "photos", "https://photos.s3.example", True),
        ("https://s3.example:9000/photos/key?X-Amz=1", "photos", "https://s3.example:9000", False),
        ("http://[::1]:9000/store/photos/key", "photos", "http://[::1]:9000/store", False),
        ("https://key.s3.example/key", "key", "https://key.s3.example", True),
    ],
)
def test_a_bucket_is_a_part_of_the_host_or_of_the_path(url, bucket, endpoint, virtual):
    assert address_bucket(url, bucket, "key") == (endpoint, virtual)


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("path_style", "bucket", "url"),
    [
        (False, "photos", "http://photos.s3.example/a"),
        (True, "photos", "http://s3.example/photos/a"),
    ],
)
def test_both_clients_address_buckets_the_same_way(client, path_style, bucket, url, monkeypatch, tmp_path):
    """The impostor is a proxy here, which sees whole URLs; without the setting, the AWS configuration counts."""
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with impostor(refusing(404, "NoSuchKey")) as (settings, requests):
        monkeypatch.setenv("http_proxy", settings["s3_endpoint_url"])
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        settings = {"s3_endpoint_url": "http://s3.example", "s3_path_style": path_style, "s3_client": client}
        (result,) = fetch(settings, f"s3://{bucket}/a")
    assert code_of(result) is ErrorCode.NOT_FOUND
    assert [each.partition("?")[0] for each in requests] == [url]


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("client", CLIENTS)
def test_nobody_there(client):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings = {"s3_endpoint_url": f"http://127.0.0.1:{port}", "s3_client": client}
    (result,) = fetch(settings, "s3://bucket/key")
    assert code_of(result) is ErrorCode.FETCH_FAILED


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", None])
def test_boto3_reads_alone_where_a_private_ca_is_trusted(monkeypatch, variable, tmp_path):
    if variable:
        monkeypatch.setenv(variable, certifi_or_system_bundle())
    settings = Settings(s3_endpoint_url="https://127.0.0.1:1")
    _, client, private_ca = make_client(settings)
    client.close()
    assert private_ca is (variable is not None)


def certifi_or_system_bundle():
    return ssl.get_default_verify_paths().cafile or ssl.get_default_verify_paths().openssl_cafile
