"""What costs more to parse than to send is cut off early, and not at the deadline."""

import asyncio
import gzip
import re

import pytest
from aiohttp import web

from classifleet.config import ErrorCode
from tests.support.web import LOOPBACK, failure, fetching, get, serve

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "unit", "words"),
    [
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: aaaaaaaaaaaa\r\n\r\n", "around"),
        (CHUNKED, b"1\r\nx\r\n", "chunks of a few bytes"),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"X-A: bbbbbbbbbbbbbbbb\r\n", ""),
        (CHUNKED + b"1;", b"aaaaaaaaaaaaaaaa", ""),
        (CHUNKED, b"70\r\n" + b"x" * 0x70 + b"\r\n", "larger|around"),
    ],
    ids=["hints", "chunks", "trailers", "extension", "body"],
)
@pytest.mark.parametrize("reused", [True, False])
def test_a_flood_is_cut_off_early(head, unit, words, reused):
    """Not at the deadline: the event loop has other images to see to."""
    sent = []

    async def talk(reader, writer):
        try:
            if reused:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
            while True:
                writer.write(unit * 1_000)
                sent.append(1_000 * len(unit))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def scenario():
        async with await asyncio.start_server(talk, LOOPBACK, 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with fetching(f"{LOOPBACK}:{port}", fetch_timeout_seconds=60.0) as fetcher:
                if reused:
                    assert await get(fetcher, f"http://{LOOPBACK}:{port}/") == b"x"
                error = await failure(fetcher, f"http://{LOOPBACK}:{port}/")
                assert error.code in (ErrorCode.FETCH_FAILED, ErrorCode.TOO_LARGE)
                assert re.search(words, str(error))
                assert sum(sent) < 16 << 20  # most of it in the buffers of the loopback

    asyncio.run(scenario())


def test_small_chunks_are_fine_if_they_are_few():
    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(300):
            await response.write(b"tiny")
        return response

    async def scenario():
        async with serve(handler) as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            assert await get(fetcher, site.url()) == b"tiny" * 300

    asyncio.run(scenario())


def test_nothing_is_inflated(monkeypatch):
    """Not even if compressed answers were taken: 8 MiB of zeros stay as they came."""
    monkeypatch.setattr("classifleet.worker.ingest.http.require_accepted", lambda *_: None)
    packed = gzip.compress(bytes(8 << 20))

    async def handler(_):
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    async def scenario():
        async with serve(handler) as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            assert await get(fetcher, site.url()) == packed

    asyncio.run(scenario())
