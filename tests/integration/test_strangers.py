"""Images whose servers drip hold up nobody but their own chunks: a real worker, and a server that drips until told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from classifleet.producer import Fleet
from tests.support.fleet import start_worker
from tests.support.services import RedisServer
from tests.support.tiny import MODEL, add_tiny
from tests.support.waiting import wait_until

CHUNK = 4
DRIPPING_CHUNKS = 12
GOOD_IMAGES = 200


class Dripper:
    """A web server of one image, which it sends at once, or below /drip byte by byte until `release` is set."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        self.release = threading.Event()
        self.dripping = 0
        self.port = 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one GET."""
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(self.image)))
        handler.end_headers()
        sent = 0
        if handler.path.startswith("/drip"):
            self.dripping += 1
            while not self.release.wait(0.1):
                handler.wfile.write(self.image[sent : sent + 1])
                sent += 1
        handler.wfile.write(self.image[sent:])


@contextmanager
def dripper(image: bytes) -> Iterator[Dripper]:
    site = Dripper(image)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield site
        finally:
            site.release.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("transport", ["atomic", pytest.param("stock", marks=pytest.mark.slow)])
def test_chunks_that_wait_for_drips_hold_no_place(tmp_path: Path, photos: Path, transport: str) -> None:
    """With two places, twelve dripping chunks would stop everything."""
    settings = {
        "MODEL_REPOSITORY": str(add_tiny(tmp_path / "models")),
        "TRANSPORT": transport,
        "CHUNKS_IN_FLIGHT": "2",
        "FETCH_TIMEOUT_SECONDS": "300",
    }
    with (
        dripper((photos / "coffee.jpg").read_bytes()) as site,
        RedisServer.start(tmp_path / "redis") as redis,
        start_worker(
            f"{redis.url}/0",
            tmp_path / "worker.log",
            settings=settings | {"HTTP_ALLOW": f"127.0.0.1:{site.port}"},
        ) as worker,
        Fleet(f"{redis.url}/0", chunk_size=CHUNK) as fleet,
    ):
        url = f"http://127.0.0.1:{site.port}"
        dripping = fleet.submit_many(
            (f"{url}/{'good' if n % CHUNK else 'drip'}" for n in range(DRIPPING_CHUNKS * CHUNK)), models=MODEL
        )
        wait_until(lambda: site.dripping == DRIPPING_CHUNKS, "every chunk of the first job to wait", 60)
        good = fleet.submit_many((f"{url}/good" for _ in range(GOOD_IMAGES)), models=MODEL)
        assert good.wait(timeout=60).ok == GOOD_IMAGES
        assert fleet.submit(f"{url}/good", models=MODEL).result(timeout=60).ok
        assert dripping.progress().done == 0
        waiting = f'classifleet_waiting_chunks{{lane="bulk"}} {DRIPPING_CHUNKS}.0'
        wait_until(lambda: waiting in worker.metrics(), "every one of them to wait again")
        site.release.set()
        assert dripping.wait(timeout=60).ok == DRIPPING_CHUNKS * CHUNK
        wait_until(lambda: 'waiting_chunks{lane="bulk"} 0.0' in worker.metrics(), "nothing to wait any more")
