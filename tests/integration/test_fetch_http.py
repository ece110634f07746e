"""The http(s) client against real servers: what is sent, what is taken, what is refused."""

import asyncio
import errno
import gzip
import socket
import ssl
import subprocess
import time

import pytest
from aiohttp import web

from classifleet.config import ErrorCode
from tests.support.web import (
    IMAGE,
    LOOPBACK,
    answers,
    failure,
    fetching,
    get,
    metric,
    serve,
    serve_bytes,
)

# What arrives, and what is sent


def test_an_image_arrives_whole_and_connections_are_reused():
    async def scenario():
        async with serve() as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            assert [await get(fetcher, site.url()) for _ in range(3)] == [IMAGE] * 3
            assert site.connections == 1
            headers = site.requests[0].headers
            assert headers["Accept-Encoding"] == "identity"
            assert not {"Cookie", "Authorization", "Referer"} & set(headers)

    asyncio.run(scenario())


def test_a_signed_url_is_sent_as_it_was_written():
    path = "/a%2Fb/../c%20d?X-Sig=a%2Fb%3D%2B&n=~%7E'&m=a+b&e="

    async def scenario():
        async with serve() as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            await get(fetcher, site.url(path + "#fragment"))
            assert site.requests[0].raw_path == path

    asyncio.run(scenario())


def test_a_url_with_letters_of_the_world_is_encoded():
    async def scenario():
        async with serve() as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            await get(fetcher, site.url("/größe.jpg?q=ü"))
            assert site.requests[0].raw_path == "/gr%C3%B6%C3%9Fe.jpg?q=%C3%BC"

    asyncio.run(scenario())


def test_cookies_are_never_sent_back():
    async def handler(_):
        response = web.Response(body=IMAGE)
        response.set_cookie("session", "1")
        return response

    async def scenario():
        async with serve(handler) as site, fetching(f"localhost:{site.port}") as fetcher:
            for _ in range(2):
                await get(fetcher, site.url(host="localhost"))
            assert "Cookie" not in site.requests[1].headers

    asyncio.run(scenario())


def test_proxies_of_the_environment_are_ignored(monkeypatch):
    async def scenario():
        async with serve() as proxy, serve() as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, proxy.url("/"))
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
            assert await get(fetcher, site.url()) == IMAGE
            assert (proxy.connections, site.connections) == (0, 1)

    asyncio.run(scenario())


# Sizes, encodings, statuses


@pytest.mark.parametrize("declared", [True, False])
def test_an_image_that_is_too_large_is_cut_off(declared):
    sent = []

    async def handler(request):
        response = web.StreamResponse(headers={"Content-Length": str(64 << 20)} if declared else {})
        await response.prepare(request)
        for _ in range(1024):
            await response.write(bytes(64 << 10))
            sent.append(64 << 10)
        return response

    async def scenario():
        async with serve(handler) as site, fetching(f"{LOOPBACK}:{site.port}", max_bytes=1 << 20) as fetcher:
            assert (await failure(fetcher, site.url())).code is ErrorCode.TOO_LARGE
            assert sum(sent) < 32 << 20

    asyncio.run(scenario())


@pytest.mark.parametrize(("size", "fits"), [(1000, True), (1001, False)])
@pytest.mark.parametrize("chunked", [True, False])
def test_the_limit_is_exact(size, fits, chunked):
    async def handler(request):
        response = web.Response(body=bytes(size))
        if chunked:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(bytes(size))
        return response

    async def scenario():
        async with serve(handler) as site, fetching(f"{LOOPBACK}:{site.port}", max_bytes=1000) as fetcher:
            if fits:
                assert await get(fetcher, site.url()) == bytes(size)
            else:
                assert (await failure(fetcher, site.url())).code is ErrorCode.TOO_LARGE

    asyncio.run(scenario())


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "identity, gzip", "br"])
def test_compressed_bytes_are_neither_inflated_nor_taken(encoding):
    async def handler(_):
        return web.Response(body=gzip.compress(bytes(8 << 20)), headers={"Content-Encoding": encoding})

    async def scenario():
        async with serve(handler) as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            assert (await failure(fetcher, site.url())).code is ErrorCode.FETCH_FAILED

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("status", "code", "requests"),
    [
        (404, ErrorCode.NOT_FOUND, 1),
        (410, ErrorCode.NOT_FOUND, 1),
        (401, ErrorCode.ACCESS_DENIED, 1),
        (403, ErrorCode.ACCESS_DENIED, 1),
        (400, ErrorCode.FETCH_FAILED, 1),
        (418, ErrorCode.FETCH_FAILED, 1),
        (451, ErrorCode.FETCH_FAILED, 1),
        (201, ErrorCode.FETCH_FAILED, 1),
        (204, ErrorCode.FETCH_FAILED, 1),
        (206, ErrorCode.FETCH_FAILED, 1),
        (300, ErrorCode.FETCH_FAILED, 1),
        (304, ErrorCode.FETCH_FAILED, 1),
        (429, ErrorCode.FETCH_FAILED, 3),
        (502, ErrorCode.FETCH_FAILED, 3),
        (503, ErrorCode.FETCH_FAILED, 3),
        (504, ErrorCode.FETCH_FAILED, 3),
        (500, ErrorCode.FETCH_FAILED, 1),
        (501, ErrorCode.FETCH_FAILED, 1),
        (505, ErrorCode.FETCH_FAILED, 1),
        (511, ErrorCode.FETCH_FAILED, 1),
    ],
)
def test_every_status_has_its_code(status, code, requests):
    async def handler(_):
        return web.Response(status=status)

    async def scenario():
        async with serve(handler) as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            error = await failure(fetcher, site.url("/image?signature=secret"))
            assert error.code is code
            assert str(status) in str(error)
            assert "secret" not in str(error)
            assert len(site.requests) == requests

    asyncio.run(scenario())


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0"}, {"Retry-After": "soon"}])
def test_a_busy_server_is_asked_again(headers):
    seen = []

    async def handler(request):
        seen.append(request)
        return web.Response(status=503, headers=headers) if len(seen) < 3 else web.Response(body=IMAGE)

    async def scenario():
        async with serve(handler) as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            assert await get(fetcher, site.url()) == IMAGE
            assert len(seen) == 3

    asyncio.run(scenario())


def test_a_server_that_asks_for_longer_than_there_is_is_not_waited_for():
    async def handler(_):
        return web.Response(status=429, headers={"Retry-After": "3600"})

    async def scenario():
        async with serve(handler) as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            begun = time.monotonic()
            assert (await failure(fetcher, site.url())).code is ErrorCode.FETCH_FAILED
            assert time.monotonic() - begun < 5
            assert len(site.requests) == 1

    asyncio.run(scenario())


def test_retry_after_is_honoured():
    times = []

    async def handler(_):
        times.append(time.monotonic())
        return web.Response(body=IMAGE) if len(times) > 1 else web.Response(status=503, headers={"Retry-After": "1"})

    async def scenario():
        async with serve(handler) as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            assert await get(fetcher, site.url()) == IMAGE
            assert times[1] - times[0] >= 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf an image",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /\xff\xfe\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x00" * 500,
        b"",
    ],
)
def test_a_broken_answer_is_one_clear_error(answer):
    async def scenario():
        async with serve_bytes(answer) as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            error = await failure(fetcher, site.url("/image?signature=secret"))
            assert error.code is ErrorCode.FETCH_FAILED
            assert "secret" not in str(error)

    asyncio.run(scenario())


def test_nobody_there():
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]

    async def scenario():
        async with fetching(f"{LOOPBACK}:{port}") as fetcher:
            assert (await failure(fetcher, f"http://{LOOPBACK}:{port}/")).code is ErrorCode.FETCH_FAILED

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "host", ["nowhere.invalid", "x" * 64 + ".example", "a..example", "xn--a", ".", "a." * 2_000 + "b"]
)
def test_a_name_without_an_address(host):
    def getaddrinfo(name, *_, **__):
        name.encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def scenario():
        async with fetching(getaddrinfo=getaddrinfo) as fetcher:
            error = await failure(fetcher, f"http://{host}/")
            assert error.code in (ErrorCode.FETCH_FAILED, ErrorCode.INVALID_REFERENCE)
            assert len(str(error)) < 400

    asyncio.run(scenario())


# TLS


@pytest.fixture
def self_signed(tmp_path):
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost -keyout {tmp_path}/key.pem -out {tmp_path}/cert.pem"
    )
    try:
        subprocess.run(command.split(), check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


def test_a_certificate_that_nobody_vouches_for_is_refused(self_signed):
    async def scenario():
        async with serve(tls=self_signed) as site, fetching(f"localhost:{site.port}") as fetcher:
            error = await failure(fetcher, site.url(host="localhost", scheme="https"))
            assert error.code is ErrorCode.FETCH_FAILED
            assert "TLS" in str(error)
            assert (site.connections, len(site.requests)) == (1, 0)

    asyncio.run(scenario())


def test_a_certificate_for_another_host_is_refused(self_signed, monkeypatch, tmp_path):
    """The client trusts the certificate and speaks to the right server; the name alone is wrong."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    lookup = answers([LOOPBACK])

    async def scenario():
        async with (
            serve(tls=self_signed) as site,
            fetching(f"localhost:{site.port}", f"other.example:{site.port}", getaddrinfo=lookup) as fetcher,
        ):
            assert await get(fetcher, site.url(host="localhost", scheme="https")) == IMAGE
            error = await failure(fetcher, site.url(host="other.example", scheme="https"))
            assert error.code is ErrorCode.FETCH_FAILED
            assert "TLS" in str(error)
            assert len(site.requests) == 1

    asyncio.run(scenario())


# What is not tried again


@pytest.mark.parametrize("parts", [[], [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"], [b"nonsense\r\n"]])
def test_a_broken_connection_is_not_tried_again(parts):
    async def scenario():
        async with serve_bytes(*parts) as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            assert (await failure(fetcher, site.url())).code is ErrorCode.FETCH_FAILED
            assert site.connections == 1

    asyncio.run(scenario())


def test_a_refused_connection_is_not_tried_again(monkeypatch):
    dials = []

    async def sock_connect(_, __, address):
        dials.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", sock_connect)

    async def scenario():
        async with fetching(f"{LOOPBACK}:80") as fetcher:
            error = await failure(fetcher, f"http://{LOOPBACK}/")
            assert error.code is ErrorCode.FETCH_FAILED
            assert error.code.spec.retryable
            assert len(dials) == 1

    asyncio.run(scenario())


def test_a_worker_without_descriptors_blames_no_host(monkeypatch):
    def no_socket(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    async def scenario():
        async with serve() as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            with monkeypatch.context() as patch:
                patch.setattr("classifleet.worker.ingest.dialling.socket.socket", no_socket)
                for _ in range(25):
                    error = await failure(fetcher, site.url())
                    assert error.code is ErrorCode.FETCH_FAILED
                    assert "EMFILE" in str(error)
            assert await get(fetcher, site.url()) == IMAGE  # the circuit is closed

    asyncio.run(scenario())


def test_idle_connections_to_strangers_are_few(monkeypatch):
    monkeypatch.setattr("classifleet.worker.ingest.dialling.MAX_IDLE_CONNECTIONS", 5)

    async def scenario():
        async with (
            serve() as site,
            fetching(f"{LOOPBACK}:{site.port}", getaddrinfo=answers([LOOPBACK])) as fetcher,
        ):
            for number in range(40):
                assert await get(fetcher, site.url(host=f"{number}.example")) == IMAGE
            assert site.connections == 40
            assert metric("classifleet_fetch_connections") <= 7

    asyncio.run(scenario())
