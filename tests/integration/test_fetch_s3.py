"""The S3 reader against a real S3 server, and against servers that misbehave on purpose."""

import asyncio
import contextlib
import os
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from classifleet.config import ErrorCode, ImageError, Settings, parse_reference
from classifleet.worker.ingest import Fetcher
from classifleet.worker.ingest.s3_boto import BotoCall, make_client
from classifleet.worker.ingest.s3_obstore import ObstoreReader, address_bucket
from tests.support.waiting import wait_until_async

CLIENTS = ("auto", "boto3")
IMAGE = b"\xff\xd8 an image " * 50_000


@contextlib.asynccontextmanager
async def started(settings_kwargs):
    fetcher = Fetcher(Settings.load(**settings_kwargs), read_blob=lambda *_: None)
    await fetcher.start()
    try:
        yield fetcher
    finally:
        await fetcher.close()


async def result_of(fetcher, text, **options):
    """The bytes, or the error."""
    job = fetcher.fetch(parse_reference(text), job="j", chunk="c", **options)
    return (await asyncio.gather(job, return_exceptions=True))[0]


def fetch(settings_kwargs, *references, **options):
    """The bytes, or the error, of each reference, all fetched at one time."""

    async def scenario():
        async with started(settings_kwargs) as fetcher:
            return await asyncio.gather(*(result_of(fetcher, text, **options) for text in references))

    return asyncio.run(scenario())


def code_of(result):
    assert isinstance(result, ImageError), result
    return result.code


KEYS = (
    "a.jpg", "folder/b c.jpg", "größe/图.jpg", "100%/a%2Fb+c?x=1#y", "~!*'()/&=;,", "%2e%2e/a", "...", "a..b/c", "😀",
    'quo"te<>|^`{}[]', "?versionid=1", "?versionId", "versionId=1", "e\u0301", "\u00e9", " a ", "a//b",
)  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS)
def test_an_object_is_read_under_its_very_key(s3, client):
    """Each key holds itself, so that no key is taken for another; what is left to boto3 is among them."""
    for key in KEYS:
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=key.encode() + IMAGE)
    results = fetch({**s3.settings_kwargs, "s3_client": client}, *(f"{s3.url}/{key}" for key in KEYS))
    assert [result[: -len(IMAGE)].decode() for result in results] == list(KEYS)


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


@pytest.mark.parametrize("client", CLIENTS)
def test_a_version_is_read_by_its_id(s3, client):
    s3.client.put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration={"Status": "Enabled"})
    bodies = [IMAGE + bytes([number]) for number in range(3)]
    for key in ("v 1/ü.jpg", "a//b"):
        versions = [s3.client.put_object(Bucket=s3.bucket, Key=key, Body=body)["VersionId"] for body in bodies]
        settings, url = {**s3.settings_kwargs, "s3_client": client}, f"{s3.url}/{key}"
        assert fetch(settings, *(f"{url}?versionId={version}" for version in versions)) == bodies
        assert fetch(settings, url) == [bodies[-1]]
        s3.client.delete_object(Bucket=s3.bucket, Key=key)
        gone, still = fetch(settings, url, f"{url}?versionId={versions[0]}")
        assert code_of(gone) is ErrorCode.NOT_FOUND
        assert still == bodies[0]
        (unknown,) = fetch(settings, f"{url}?versionId=none-such")
        assert code_of(unknown) in (ErrorCode.NOT_FOUND, ErrorCode.FETCH_FAILED, ErrorCode.INVALID_REFERENCE)


def test_an_allow_list_covers_versions_too(s3):
    results = fetch({**s3.settings_kwargs, "source_allow": [f"{s3.url}/public"]}, f"{s3.url}/private/a?versionId=1")
    assert code_of(results[0]) is ErrorCode.FORBIDDEN_SOURCE


def test_obstore_reads_unless_boto3_is_asked_for(s3, monkeypatch):
    def read(call):
        calls.append(call)
        return b"by boto3"

    calls = []
    monkeypatch.setattr(BotoCall, "read", read)
    s3.client.put_object(Bucket=s3.bucket, Key="a.jpg", Body=IMAGE)
    assert fetch(s3.settings_kwargs, f"{s3.url}/a.jpg", f"{s3.url}/a//jpg") == [IMAGE, b"by boto3"]
    assert fetch({**s3.settings_kwargs, "s3_client": "boto3"}, f"{s3.url}/a.jpg") == [b"by boto3"]
    assert len(calls) == 2


def test_boto3_reads_where_obstore_is_not_installed(s3, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    s3.client.put_object(Bucket=s3.bucket, Key="a.jpg", Body=IMAGE)
    monkeypatch.setattr(ObstoreReader, "read", None)
    assert fetch(s3.settings_kwargs, f"{s3.url}/a.jpg") == [IMAGE]


@pytest.mark.parametrize("client", CLIENTS)
def test_many_objects_at_one_time(s3, client):
    for number in range(20):
        s3.client.put_object(Bucket=s3.bucket, Key=f"{number}.jpg", Body=bytes([number]) * 1000)
    results = fetch(
        {**s3.settings_kwargs, "fetch_concurrency": 4, "s3_client": client}, *(f"{s3.url}/{n}.jpg" for n in range(20))
    )
    assert results == [bytes([number]) * 1000 for number in range(20)]


@pytest.mark.parametrize("client", CLIENTS)
def test_what_is_not_there(s3, client):
    results = fetch({**s3.settings_kwargs, "s3_client": client}, f"{s3.url}/none.jpg", "s3://no-such-bucket/none.jpg")
    assert [code_of(result) for result in results] == [ErrorCode.NOT_FOUND] * 2


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("size", "fits"), [(1000, True), (1001, False)])
def test_the_size_is_limited(s3, size, fits, client):
    s3.client.put_object(Bucket=s3.bucket, Key="image", Body=bytes(size))
    (result,) = fetch({**s3.settings_kwargs, "max_bytes": 1000, "s3_client": client}, f"{s3.url}/image")
    assert result == bytes(size) if fits else code_of(result) is ErrorCode.TOO_LARGE


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials(s3, monkeypatch, variable, client):
    monkeypatch.setenv(variable, "wrong")
    (result,) = fetch({**s3.settings_kwargs, "s3_client": client}, f"{s3.url}/image")
    assert code_of(result) is ErrorCode.ACCESS_DENIED


@pytest.mark.parametrize("client", CLIENTS)
def test_no_credentials(s3, monkeypatch, client):
    for variable in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(variable)
    (result,) = fetch({**s3.settings_kwargs, "s3_client": client}, f"{s3.url}/image")
    assert code_of(result) is ErrorCode.ACCESS_DENIED


def test_only_what_is_below_an_allowed_prefix_is_read(s3):
    keys = ["public/a", "public/deep/a", "public-not/a", "a", "exact"]
    for key in keys:
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"x")
    allowed = {**s3.settings_kwargs, "source_allow": [f"{s3.url}/public", f"{s3.url}/exact"]}
    others = [
        f"{s3.url}x/public/a",
        f"{s3.url}/public/..\\a",
        f"{s3.url}/public/../a",
        f"{s3.url}/public/./a",
        f"{s3.url}/public/..",
    ]
    results = fetch(allowed, *(f"{s3.url}/{key}" for key in keys), *others)
    refused, invalid = ErrorCode.FORBIDDEN_SOURCE, ErrorCode.INVALID_REFERENCE
    assert results[:2] == [b"x"] * 2
    assert [code_of(results[2]), code_of(results[3])] == [refused] * 2
    assert results[4] == b"x"
    assert [code_of(result) for result in results[5:]] == [refused, invalid, invalid, invalid, invalid]


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
