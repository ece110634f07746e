"""Objects through a `Fetcher`, and S3 servers that misbehave on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from classifleet.config import ErrorCode, ImageError, Settings, parse_reference
from classifleet.worker.ingest import Fetcher

CLIENTS: Final = ("auto", "boto3")

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextlib.asynccontextmanager
async def started(settings_kwargs: Mapping[str, Any]) -> AsyncIterator[Fetcher]:
    """A fetcher with these settings."""
    fetcher = Fetcher(Settings.load(**settings_kwargs), read_blob=lambda *_: None)
    await fetcher.start()
    try:
        yield fetcher
    finally:
        await fetcher.close()


async def result_of(fetcher: Fetcher, text: str, **options: Any) -> bytes | BaseException:
    """The bytes, or the error."""
    job = fetcher.fetch(parse_reference(text), job="j", chunk="c", **options)
    return (await asyncio.gather(job, return_exceptions=True))[0]


def fetch(settings_kwargs: Mapping[str, Any], *references: str, **options: Any) -> list[bytes | BaseException]:
    """The bytes, or the error, of each reference, all fetched at one time."""

    async def scenario() -> list[bytes | BaseException]:
        async with started(settings_kwargs) as fetcher:
            return await asyncio.gather(*(result_of(fetcher, text, **options) for text in references))

    return asyncio.run(scenario())


def code_of(result: object) -> ErrorCode:
    """The code of what must be an error."""
    assert isinstance(result, ImageError), result
    return result.code


@contextlib.contextmanager
def impostor(answer: Answer) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """An "S3 server" that answers every GET as it is told; yields settings, and the list of requests."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            requests.append(self.path)
            self.close_connection = True
            with contextlib.suppress(ConnectionError):
                answer(self)

        def log_message(self, *_: object) -> None:
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


def refusing(status: int, code: str) -> Answer:
    """An impostor's answer: an error with this name."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        body = f"<Error><Code>{code}</Code><Message>signature=secret</Message></Error>".encode() if code else b""
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer
