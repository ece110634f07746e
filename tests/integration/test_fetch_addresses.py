"""Where the http(s) client goes: forbidden servers on the loopback count every connection, and must count none.

Their ports are open to all public addresses, so that nothing but the address keeps the client away.
"""

import asyncio

import pytest
from aiohttp import web

from classifleet.config import ErrorCode, ImageError
from classifleet.worker.ingest.resolver import CheckedResolver
from tests.support.web import (
    EVERYWHERE,
    IMAGE,
    LOOPBACK,
    PUBLIC,
    answers,
    failure,
    fetching,
    get,
    serve,
)

# Addresses


def near(site, *allow, **settings):
    """A fetcher that may dial the site's port wherever it may dial at all."""
    return fetching(*allow, http_ports=[site.port], **settings)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.3",
        "2130706433",
        "0x7f000001",
        "0x7F.1",
        "0177.0.0.1",
        "017700000001",
        "127.1",
        "0",
        "0.0.0.0",
        "127.0.0.1.",
        "127.0.0.1..",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "%31%32%37.0.0.1",
        "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
        "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460",
        "127\u30020\u30020\u30021",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::ffff:0:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "[::1%25lo]",
        "[fe80::1%25lo]",
        "169.254.169.254",
        "[fd00:ec2::254]",
    ],
)
def test_no_spelling_of_a_forbidden_address_is_dialled(host):
    async def scenario():
        async with serve(hosts=EVERYWHERE) as site, near(site, f"127.0.0.2:{site.port}") as fetcher:
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
        async with serve(hosts=EVERYWHERE) as site, near(site) as fetcher:
            assert (await failure(fetcher, url.format(site.port))).code is ErrorCode.FORBIDDEN_ADDRESS
            assert site.connections == 0

    asyncio.run(scenario())


def test_an_allowed_host_is_allowed_under_that_name_alone():
    async def scenario():
        async with serve() as site, near(site, f"localhost:{site.port}") as fetcher:
            assert await get(fetcher, site.url(host="LocalHost")) == IMAGE
            assert (await failure(fetcher, site.url())).code is ErrorCode.FORBIDDEN_ADDRESS
            assert site.connections == 1

    asyncio.run(scenario())


def test_an_allowed_host_does_not_open_its_address_to_other_names():
    """Both names lead to one address at one time; the guard knows which request a socket is for."""

    async def scenario():
        async with serve() as site, near(site, f"good.example:{site.port}", f"127.0.0.9:{site.port}",
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
            near(site, f"127.0.0.2:{site.port}", getaddrinfo=answers(mixed)) as fetcher,
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
    monkeypatch.setattr("classifleet.worker.ingest.dialling.DNS_TTL_SECONDS", 0)
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
            near(site, f"127.0.0.2:{site.port}", getaddrinfo=answers(addresses)) as fetcher,
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
                allow = [f"127.0.0.2:{port}" for port in ports]
                async with fetching(*allow, http_ports=[80, 443, *ports]) as fetcher:
                    assert (await failure(fetcher, site.url("/moved", "127.0.0.2"))).code is code
                    assert (forbidden.connections, other.connections) == (0, 0)
                    assert len(site.requests) == (6 if location == "/moved" else 1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("redirect", "code"),
    [("http://rebind.example:{port}/", ErrorCode.FORBIDDEN_ADDRESS), ("https://good.example:{port}/", None)],
)
def test_each_hop_is_looked_up_and_checked_by_itself(redirect, code):
    """The first host is allowed by name; what it points to is not, wherever its name leads."""

    async def scenario():
        async with serve() as forbidden:

            async def handler(_):
                return web.Response(status=302, headers={"Location": redirect.format(port=forbidden.port)})

            async with (
                serve(handler) as site,
                fetching(
                    f"good.example:{site.port}",
                    getaddrinfo=answers([LOOPBACK]),
                    http_ports=[site.port, forbidden.port],
                ) as fetcher,
            ):
                error = await failure(fetcher, site.url(host="good.example"))
                assert error.code is (code or ErrorCode.FORBIDDEN_ADDRESS)
                assert forbidden.connections == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "reference",
    [
        "http://{host}\\@127.0.0.2:{port}/",
        "http://127.0.0.2:{port}\\@{host}/",
        "http://user@{host}:{port}/",
        "http://127.0.0.2:{port}@{host}:{port}/",
        "http://{host}:{port}\t/",
        "http://{host}\n:{port}/",
        "http://127.0.0.2\x00.{host}:{port}/",
        "ht\ntp://{host}:{port}/",
        "http://{host}:{port}/\r\nHost: x",
        "http://{host}:{port}/" + "a" * 9_000,
        "http:{host}:{port}/",
        "http:///{host}:{port}/",
        "//{host}:{port}/",
        "http://{host}:{port}#@127.0.0.2/",
        "http://{host}:{port}?@127.0.0.2/",
        "http://0x7f.1:{port}/",
        "http://[::ffff:{host}]:{port}/",
        "http://{host}.:{port}/",
        "http://{host}%00:{port}/",
        "gopher://{host}:{port}/",
        "file://{host}:{port}/",
        "http://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3:{port}/",
    ],
)
def test_no_trick_in_a_url_reaches_a_forbidden_server(reference):
    async def scenario():
        async with serve(hosts=EVERYWHERE) as site, near(site, f"127.0.0.2:{site.port}") as fetcher:
            with pytest.raises(ImageError):
                await get(fetcher, reference.format(host=LOOPBACK, port=site.port))
            assert site.connections == 0

    asyncio.run(scenario())


def test_a_denied_host_is_not_reached_even_if_it_is_allowed():
    async def scenario():
        async with serve() as site, near(site, f"localhost:{site.port}", http_deny=["localhost"]) as fetcher:
            error = await failure(fetcher, site.url(host="localhost"))
            assert error.code is ErrorCode.FORBIDDEN_ADDRESS
            assert site.connections == 0

    asyncio.run(scenario())


def test_a_name_with_a_thousand_addresses_is_dialled_a_few_times(dialled):
    many = [f"93.184.{number // 250}.{number % 250 + 1}" for number in range(1_000)]

    async def scenario():
        async with fetching(getaddrinfo=answers(many)) as fetcher:
            assert (await failure(fetcher, "http://many.example/")).code is ErrorCode.FETCH_FAILED
            assert 1 <= len(dialled) <= 4
        dialled.clear()
        async with fetching(getaddrinfo=answers([*many, LOOPBACK])) as fetcher:
            assert (await failure(fetcher, "http://many.example/")).code is ErrorCode.FORBIDDEN_ADDRESS
            assert dialled == []

    asyncio.run(scenario())
