"""The http(s) client against real servers on the loopback, which count every connection they accept."""

import asyncio
import contextlib
import gzip
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from classifleet.config import ErrorCode, ImageError, Settings, parse_reference
from classifleet.worker.ingest import Fetcher
from classifleet.worker.ingest.resolver import CheckedResolver
from tests.support.waiting import wait_until_async

IMAGE = b"\xff\xd8 an image " * 5_000
PUBLIC = "93.184.216.34"
LOOPBACK = "127.0.0.1"
EVERYWHERE = (LOOPBACK, "127.0.0.2", "127.0.0.3", "127.0.0.5", "::1")
NEVER_SECONDS = 60.0


@dataclass
class Site:
    """A server on the loopback, and all that reached it."""

    port: int = 0
    connections: int = 0
    requests: list[web.BaseRequest] = field(default_factory=list)

    def url(self, path: str = "/image", host: str = LOOPBACK, scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


@contextlib.asynccontextmanager
async def serve(handler=None, *, hosts=(LOOPBACK,), tls: ssl.SSLContext | None = None):
    """A server on the same port of all these hosts."""

    async def answer(request):
        site.requests.append(request)
        return await handler(request) if handler else web.Response(body=IMAGE)

    def accept():
        site.connections += 1
        return server()

    site, server = Site(), web.Server(answer, access_log=None)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.shutdown, 0)
        for host in hosts:
            listener = await asyncio.get_running_loop().create_server(accept, host, site.port, ssl=tls)
            stack.callback(listener.close)
            site.port = listener.sockets[0].getsockname()[1]
        yield site


@contextlib.asynccontextmanager
async def serve_bytes(*parts: bytes, pause_seconds: float = 0.0, hold: bool = False):
    """A server below HTTP: it reads a request's head, writes the parts, and closes, or holds the line."""
    site, talks = Site(), set()

    async def talk(reader, writer):
        site.connections += 1
        talks.add(asyncio.current_task())
        try:
            await reader.readuntil(b"\r\n\r\n")
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_seconds)
            if hold:
                await asyncio.Event().wait()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    listener = await asyncio.start_server(talk, LOOPBACK, 0)
    site.port = listener.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        listener.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks)


@contextlib.asynccontextmanager
async def fetching(*allow: str, getaddrinfo=socket.getaddrinfo, **settings):
    settings = {"fetch_timeout_seconds": 10.0, "max_bytes": 1 << 20, **settings}
    fetcher = Fetcher(Settings(http_allow=list(allow), **settings), read_blob=lambda *_: None, getaddrinfo=getaddrinfo)
    await fetcher.start()
    try:
        yield fetcher
    finally:
        await fetcher.close()


async def get(fetcher, url, **options):
    return await fetcher.fetch(parse_reference(url), job="job", chunk="chunk", **options)


async def failure(fetcher, url, **options) -> ImageError:
    with pytest.raises(ImageError) as caught:
        await get(fetcher, url, **options)
    return caught.value


def answers(*rounds):
    """A `getaddrinfo` that answers each call with the next round of addresses, and then with the last for ever."""
    left = list(rounds)

    def getaddrinfo(host, port, **_):
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    return getaddrinfo


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


# Addresses


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.0.0.3", "2130706433", "0x7f000001", "0x7F.1", "0177.0.0.1", "017700000001", "127.1", "0",
        "0.0.0.0", "127.0.0.1.", "127.0.0.1..", "localhost", "LOCALHOST", "localhost.", "%31%32%37.0.0.1",
        "\uff11\uff12\uff17.\uff10.\uff10.\uff11", "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460",
        "127\u30020\u30020\u30021",
        "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:0:127.0.0.1]", "[::127.0.0.1]",
        "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[::1%25lo]", "[fe80::1%25lo]",
        "169.254.169.254", "[fd00:ec2::254]",
    ],
)  # fmt: skip
def test_no_spelling_of_a_forbidden_address_is_dialled(host):
    """The port is open for another address, so that the address alone decides."""

    async def scenario():
        async with serve(hosts=EVERYWHERE) as site, fetching(f"127.0.0.2:{site.port}") as fetcher:
            assert await get(fetcher, site.url(host="127.0.0.2")) == IMAGE  # the server is there
            error = await failure(fetcher, site.url(host=host))
            # Names that no resolver knows cannot be fetched either.
            unknown = host.startswith("%") or host.startswith("localhost.")
            assert error.code is ErrorCode.FORBIDDEN_ADDRESS or (unknown and error.code is ErrorCode.FETCH_FAILED)
            assert site.connections == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["http://localhost:{}/", "http://[::1]:{}/", "http://127.0.0.1:{}/"])
def test_without_settings_nothing_near_is_reached(url):
    async def scenario():
        async with serve(hosts=EVERYWHERE) as site, fetching() as fetcher:
            assert (await failure(fetcher, url.format(site.port))).code is ErrorCode.FORBIDDEN_ADDRESS
            assert site.connections == 0

    asyncio.run(scenario())


def test_an_allowed_host_is_allowed_under_that_name_alone():
    async def scenario():
        async with serve() as site, fetching(f"localhost:{site.port}") as fetcher:
            assert await get(fetcher, site.url(host="LocalHost")) == IMAGE
            assert (await failure(fetcher, site.url())).code is ErrorCode.FORBIDDEN_ADDRESS
            assert site.connections == 1

    asyncio.run(scenario())


def test_an_allowed_host_does_not_open_its_address_to_other_names():
    """Both names lead to one address at one time; the guard knows which request a socket is for."""

    async def scenario():
        async with serve() as site, fetching(f"good.example:{site.port}", f"127.0.0.9:{site.port}",
                                             getaddrinfo=answers([LOOPBACK])) as fetcher:  # fmt: skip
            jobs = [get(fetcher, site.url(host=host)) for host in ("good.example", "evil.example") * 8]
            results = await asyncio.gather(*jobs, return_exceptions=True)
            assert results[::2] == [IMAGE] * 8
            assert {error.code for error in results[1::2]} == {ErrorCode.FORBIDDEN_ADDRESS}
            assert {request.headers["Host"] for request in site.requests} == {f"good.example:{site.port}"}

    asyncio.run(scenario())


@pytest.mark.parametrize("others", [[PUBLIC], ["127.0.0.2"], ["2606:4700::1111"]])
@pytest.mark.parametrize("first", [True, False])
def test_a_name_with_one_forbidden_address_among_good_ones_is_refused(others, first):
    mixed = [LOOPBACK, *others] if first else [*others, LOOPBACK]

    async def scenario():
        async with (
            serve(hosts=EVERYWHERE) as site,
            fetching(f"127.0.0.2:{site.port}", getaddrinfo=answers(mixed)) as fetcher,
        ):
            error = await failure(fetcher, site.url(host="mixed.example"))
            assert error.code is ErrorCode.FORBIDDEN_ADDRESS
            assert LOOPBACK not in str(error)
            assert site.connections == 0

    asyncio.run(scenario())


@pytest.fixture
def dialled(monkeypatch):
    """Every address that a socket dials; what is not on the loopback is refused instead of dialled."""
    seen = []

    async def sock_connect(loop, sock, address):
        seen.append(address[0])
        if not address[0].startswith("127."):
            raise ConnectionRefusedError(111, "refused by the test")
        return await original(loop, sock, address)

    original = asyncio.SelectorEventLoop.sock_connect
    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", sock_connect)
    return seen


def test_a_name_that_is_public_first_and_private_then(dialled, monkeypatch):
    monkeypatch.setattr("classifleet.worker.ingest.http.DNS_TTL_SECONDS", 0)
    rebinding = answers([PUBLIC], [LOOPBACK])

    async def scenario():
        async with serve() as site, fetching(f"127.0.0.2:{site.port}", getaddrinfo=rebinding) as fetcher:
            first = await failure(fetcher, "http://rebind.example/")
            second = await failure(fetcher, "http://rebind.example/")
            assert (first.code, second.code) == (ErrorCode.FETCH_FAILED, ErrorCode.FORBIDDEN_ADDRESS)
            assert dialled == [PUBLIC]
            assert site.connections == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("addresses", [[LOOPBACK], [LOOPBACK, "::1"], ["::1", LOOPBACK, "127.0.0.5"]])
def test_the_guard_holds_even_if_the_resolver_lets_everything_through(addresses, dialled, monkeypatch):
    def unchecked(self, host, port, answer):
        return {"hostname": host, "host": answer[4][0], "port": port, "family": answer[0], "proto": 6, "flags": 0}

    monkeypatch.setattr(CheckedResolver, "_checked", unchecked)

    async def scenario():
        async with (
            serve(hosts=EVERYWHERE) as site,
            fetching(f"127.0.0.2:{site.port}", getaddrinfo=answers(addresses)) as fetcher,
        ):
            assert (await failure(fetcher, site.url(host="evil.example"))).code is ErrorCode.FORBIDDEN_ADDRESS
            assert (site.connections, dialled) == (0, [])

    asyncio.run(scenario())


@pytest.mark.parametrize("port", [0, 22, 8080, 65535])
def test_other_ports_are_refused_before_any_lookup(port):
    def getaddrinfo(*_, **__):
        raise AssertionError("looked up")

    async def scenario():
        async with fetching("10.0.0.0/8:443", getaddrinfo=getaddrinfo) as fetcher:
            error = await failure(fetcher, f"http://public.example:{port}/")
            assert error.code is ErrorCode.FORBIDDEN_ADDRESS
            assert "http_allow" in str(error)

    asyncio.run(scenario())


# Redirects


def redirecting(location, status=302):
    async def handler(request):
        if request.path == "/image":
            return web.Response(body=IMAGE)
        headers = {} if location is None else {"Location": location}
        return web.Response(status=status, headers=headers)

    return handler


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/image", "image", "?x=/../image"])
def test_a_redirect_is_followed(status, location):
    async def scenario():
        async with serve(redirecting("/image", status)) as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            assert await get(fetcher, site.url("/moved")) == IMAGE
            assert site.paths == ["/moved", "/image"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("http://127.0.0.1:{forbidden}/image", ErrorCode.FORBIDDEN_ADDRESS),
        ("//127.0.0.1:{forbidden}/image", ErrorCode.FORBIDDEN_ADDRESS),
        ("http://localhost:{port}/image", ErrorCode.FORBIDDEN_ADDRESS),
        ("http://2130706433:{port}/image", ErrorCode.FORBIDDEN_ADDRESS),
        ("http://[::ffff:127.0.0.1]:{port}/image", ErrorCode.FORBIDDEN_ADDRESS),
        ("http://169.254.169.254/latest/meta-data/", ErrorCode.FORBIDDEN_ADDRESS),
        ("http://127.0.0.2/image", ErrorCode.FORBIDDEN_ADDRESS),
        ("file:///etc/passwd", ErrorCode.FORBIDDEN_SOURCE),
        ("s3://bucket/key", ErrorCode.FORBIDDEN_SOURCE),
        ("data:image/png;base64,AAAA", ErrorCode.FORBIDDEN_SOURCE),
        ("ftp://127.0.0.2/image", ErrorCode.FORBIDDEN_SOURCE),
        ("javascript:alert(1)", ErrorCode.FORBIDDEN_SOURCE),
        ("http://user:pass@127.0.0.2:{port}/image", ErrorCode.FETCH_FAILED),
        ("http://127.0.0.2:{port}@127.0.0.1:{forbidden}/image", ErrorCode.FETCH_FAILED),
        ("http:\\\\127.0.0.1:{forbidden}\\image", ErrorCode.FETCH_FAILED),
        ("http://127.0.0.2:{port}\\@127.0.0.1:{forbidden}/", ErrorCode.FETCH_FAILED),
        ("ht\ttp://127.0.0.1:{forbidden}/image", ErrorCode.FETCH_FAILED),
        ("http://127.0.0.2:{port}/a b", ErrorCode.FETCH_FAILED),
        ("http://", ErrorCode.FETCH_FAILED),
        ("http:///moved", ErrorCode.FETCH_FAILED),
        ("http:moved", ErrorCode.FETCH_FAILED),
        ("http://[::1/image", ErrorCode.FETCH_FAILED),
        ("http://127.0.0.2:99999/image", ErrorCode.FETCH_FAILED),
        ("http://127.0.0.2:{port}/" + "a" * 9_000, ErrorCode.FETCH_FAILED),
        ("/moved", ErrorCode.FETCH_FAILED),
        ("", ErrorCode.FETCH_FAILED),
        (None, ErrorCode.FETCH_FAILED),
    ],
)
def test_a_redirect_to_anything_else_is_refused(location, code):
    async def scenario():
        async with serve() as forbidden, serve(hosts=["127.0.0.2"]) as other:
            target = location and location.format(forbidden=forbidden.port, port=other.port)

            async def handler(_):
                return web.Response(status=302, headers={} if target is None else {"Location": target})

            async with serve(handler, hosts=["127.0.0.2"]) as site:
                ports = (site.port, other.port, forbidden.port)
                async with fetching(*(f"127.0.0.2:{port}" for port in ports)) as fetcher:
                    assert (await failure(fetcher, site.url("/moved", "127.0.0.2"))).code is code
                    assert (forbidden.connections, other.connections) == (0, 0)
                    assert len(site.requests) == (6 if location == "/moved" else 1)

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
        (404, ErrorCode.NOT_FOUND, 1), (410, ErrorCode.NOT_FOUND, 1),
        (401, ErrorCode.ACCESS_DENIED, 1), (403, ErrorCode.ACCESS_DENIED, 1),
        (400, ErrorCode.FETCH_FAILED, 1), (418, ErrorCode.FETCH_FAILED, 1), (451, ErrorCode.FETCH_FAILED, 1),
        (201, ErrorCode.FETCH_FAILED, 1), (204, ErrorCode.FETCH_FAILED, 1), (206, ErrorCode.FETCH_FAILED, 1),
        (300, ErrorCode.FETCH_FAILED, 1), (304, ErrorCode.FETCH_FAILED, 1),
        (429, ErrorCode.FETCH_FAILED, 3), (500, ErrorCode.FETCH_FAILED, 3), (503, ErrorCode.FETCH_FAILED, 3),
    ],
)  # fmt: skip
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


# Time


@pytest.mark.parametrize(
    "parts",
    [
        [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 3_000],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", *[b"."] * 3_000],
        [*[b"HTTP/1.1 103 Early Hints\r\n\r\n"] * 3_000],
        [b""] * 3_000,
    ],
    ids=["headers", "body", "hints", "silence"],
)
@pytest.mark.parametrize("by_setting", [True, False])
def test_a_drip_is_cut_at_the_deadline(parts, by_setting):
    limits = ({"fetch_timeout_seconds": 0.4}, {}) if by_setting else ({}, {"deadline_seconds": 0.4})

    async def scenario():
        async with (
            serve_bytes(*parts, pause_seconds=0.02) as site,
            fetching(f"{LOOPBACK}:{site.port}", **limits[0]) as fetcher,
        ):
            begun = time.monotonic()
            error = await failure(fetcher, site.url(), **limits[1])
            assert error.code is ErrorCode.FETCH_TIMEOUT
            assert 0.3 < time.monotonic() - begun < 3
            assert site.connections == 1

    asyncio.run(scenario())


def test_a_host_that_never_answers_the_phone_is_called_again_and_given_up(monkeypatch):
    dials = []

    async def sock_connect(_, __, address):
        dials.append(address)
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", sock_connect)

    async def scenario():
        async with fetching(f"{LOOPBACK}:80", connect_timeout_seconds=0.05) as fetcher:
            assert (await failure(fetcher, f"http://{LOOPBACK}/")).code is ErrorCode.FETCH_TIMEOUT
            assert dials == [(LOOPBACK, 80)] * 3

    asyncio.run(scenario())


def test_a_deadline_that_has_passed_dials_nobody():
    async def scenario():
        async with serve() as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            assert (await failure(fetcher, site.url(), deadline_seconds=0.0)).code is ErrorCode.FETCH_TIMEOUT
            assert site.connections == 0

    asyncio.run(scenario())


def test_a_slow_name_server_is_cut_at_the_deadline_and_others_go_on():
    release = threading.Event()

    def getaddrinfo(host, port, **_):
        if host == "slow.example":
            release.wait(NEVER_SECONDS)
        return answers([LOOPBACK])(host, port)

    async def scenario():
        async with serve() as site, fetching(f"{LOOPBACK}:{site.port}", getaddrinfo=getaddrinfo) as fetcher:
            try:
                slow = asyncio.create_task(failure(fetcher, site.url(host="slow.example"), deadline_seconds=0.5))
                assert await get(fetcher, site.url(host="fast.example")) == IMAGE
                assert (await slow).code is ErrorCode.FETCH_TIMEOUT
            finally:
                release.set()

    asyncio.run(scenario())


def test_no_more_images_at_one_time_than_the_setting_says():
    gate, now, most = asyncio.Event(), [], []

    async def handler(request):
        now.append(request)
        most.append(len(now))
        await gate.wait()
        now.remove(request)
        return web.Response(body=IMAGE)

    async def scenario():
        async with serve(handler) as site, fetching(f"{LOOPBACK}:{site.port}", fetch_concurrency=3) as fetcher:
            tasks = [asyncio.create_task(get(fetcher, site.url())) for _ in range(12)]
            await wait_until_async(lambda: len(now) == 3, "three requests are under way")
            assert (await failure(fetcher, site.url(), deadline_seconds=0.1)).code is ErrorCode.FETCH_TIMEOUT
            gate.set()
            assert await asyncio.gather(*tasks) == [IMAGE] * 12
            assert max(most) == 3

    asyncio.run(scenario())


def test_cancelling_passes_through_and_frees_the_slot():
    async def scenario():
        async with (
            serve_bytes(hold=True) as silent,
            serve() as site,
            fetching(f"{LOOPBACK}:{silent.port}", f"{LOOPBACK}:{site.port}", fetch_concurrency=1) as fetcher,
        ):
            task = asyncio.create_task(get(fetcher, silent.url()))
            await wait_until_async(lambda: silent.connections == 1, "the request is under way")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await get(fetcher, site.url()) == IMAGE

    asyncio.run(scenario())


def test_a_fetcher_that_was_not_started_says_so(caplog):
    async def scenario():
        fetcher = Fetcher(Settings(), read_blob=lambda *_: None)
        try:
            error = await failure(fetcher, "http://public.example/?signature=secret")
            assert error.code is ErrorCode.INTERNAL
            assert "secret" not in caplog.text
        finally:
            await fetcher.close()

    asyncio.run(scenario())
