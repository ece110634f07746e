"""Fixtures: a fleet that runs for the whole session."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import io
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.fleet import Worker, start_worker
from tests.support.services import ACCESS_KEY, SECRET_KEY, RedisServer, S3Server


@dataclass(frozen=True, slots=True)
class LiveFleet:
    """A running fleet: connect with `Fleet(live_fleet.url)`.

    Attributes:
        url: Broker and ledger.
        worker: Its one worker.
        photos: A folder of real JPEGs that the worker may read as file:// (chelsea.jpg, coffee.jpg, rocket.jpg, …).
        web: The same photos over http, from the one loopback address that the worker may fetch from.
        sinks: A folder that jobs may write to, as file://.
        s3: An S3 server that it may read from; sinks are allowed below s3://sink-bucket.
    """

    url: str
    worker: Worker
    photos: Path
    web: str
    sinks: Path
    s3: S3Server


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-image's photos as JPEGs."""
    from PIL import Image

    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image is not installed")
    folder = tmp_path_factory.mktemp("photos")
    for name in ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "motorcycle_left.png"):
        with Image.open(Path(spec.origin).parent / "data" / name) as image:
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=90)
        (folder / name).with_suffix(".jpg").write_bytes(buffer.getvalue())
    return folder


@pytest.fixture(scope="session")
def web(photos: Path) -> Iterator[str]:
    """A web server of the photos on loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(photos))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def live_fleet(
    tmp_path_factory: pytest.TempPathFactory, zoo: Path, photos: Path, web: str, s3_server: S3Server
) -> Iterator[LiveFleet]:
    """A worker with imagenet and nsfw on a Redis of its own; about ten seconds, once a session."""
    folder = tmp_path_factory.mktemp("fleet")
    sinks = tmp_path_factory.mktemp("sinks")
    client = s3_server.client()
    client.create_bucket(Bucket="sink-bucket")
    client.close()
    settings = {
        "MODEL_REPOSITORY": str(zoo),
        "FILE_ROOTS": str(photos),
        "HTTP_ALLOW": web.removeprefix("http://"),
        "SINK_ALLOW": json.dumps([f"file://{sinks}", "s3://sink-bucket"]),
        "S3_ENDPOINT_URL": s3_server.endpoint_url,
        "S3_PATH_STYLE": "true",
        "LEASE_SECONDS": "5",
    }
    with pytest.MonkeyPatch.context() as patch, RedisServer.start(folder / "redis") as redis:
        for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_CA_BUNDLE"]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with start_worker(f"{redis.url}/0", folder / "worker.log", settings=settings) as worker:
            yield LiveFleet(f"{redis.url}/0", worker, photos, web, sinks, s3_server)
