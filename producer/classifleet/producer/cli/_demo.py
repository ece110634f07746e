"""`classifleet demo`: the main job on real photos, with nothing installed or configured.

photos of scikit-image ─► URL, base64, file, S3 object ─► embedded Redis ─► worker ─► answers, parts, metrics
"""

from __future__ import annotations

import urllib.request
from collections import Counter
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from classifleet.producer.cli._demo_stage import Stage, set_the_stage
from classifleet.producer.cli._progress import follow
from classifleet.producer.cli._reader import file_reference
from classifleet.producer.fleet import Job
from classifleet.producer.render import result_panel

MODELS: Final = ("imagenet", "nsfw")
BULK_IMAGES: Final = 200
TOP_K: Final = 3
ANSWER_SECONDS: Final = 60.0

console = Console(highlight=False)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results of the bulk job.")] = Path("out/demo"),
    images: Annotated[int, typer.Option(min=1, help="Images of the bulk job at the end.")] = BULK_IMAGES,
) -> None:
    """Start a whole fleet on this machine, classify real photos in every way it takes them, and clean up.

    **Examples**

    ```
    classifleet demo
    classifleet demo --images 1000 --out demo-results
    ```
    """
    with set_the_stage(out.resolve(), MODELS) as stage:
        console.rule("one image at a time, given in every way")
        _one_by_one(stage)
        console.rule(f"a bulk job of {images} images")
        job = _bulk(stage, images)
        console.rule("where to look")
        _print_places(stage, job)


def _one_by_one(stage: Stage) -> None:
    for how, name, ref in stage.references():
        handle = stage.fleet.submit(ref, models=MODELS, id=name, top_k=TOP_K, meta={"given as": how})
        console.print(Text.assemble("\ngiven as ", (how, "bold")))
        console.print(result_panel(handle.result(ANSWER_SECONDS), top_k=TOP_K))


def _bulk(stage: Stage, images: int) -> Job:
    photos = (stage.photos[number % len(stage.photos)] for number in range(images))
    items = ((f"{number:04d}-{photo.name}", file_reference(photo)) for number, photo in enumerate(photos))
    job = stage.fleet.submit_many(items, models=MODELS, sink=file_reference(stage.out))
    progress = follow(stage.fleet, job)
    tops: dict[str, Counter[str]] = {model: Counter() for model in MODELS}
    for result in job.results():
        for model in MODELS:
            if model in result and result[model].ok:
                tops[model][result[model].top] += 1
    table = Table("model", "labels found", box=None, header_style="bold")
    for model, counts in tops.items():
        table.add_row(model, Text(", ".join(f"{label} {count}" for label, count in counts.most_common())))
    console.print(table)
    console.print(
        f"{progress.ok} of {progress.accepted} images answered by {len(MODELS)} models each, "
        f"[bold]{progress.rate:.1f} images/s[/]"
    )
    return job


def _print_places(stage: Stage, job: Job) -> None:
    folder = stage.out / job.id
    with urllib.request.urlopen(f"{stage.metrics_url}/metrics", timeout=5) as answer:  # noqa: S310 - our own worker
        (folder / "metrics.txt").write_bytes(answer.read())
    parts = len(list((folder / "parts").iterdir()))
    near = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    places = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    places.add_column(no_wrap=True)
    places.add_column(overflow="fold")
    places.add_row("results", Text(f"{near}/manifest.json and {parts} parts, one JSON record a line"))
    places.add_row("metrics", Text(f"{near}/metrics.txt, as the worker served them at {stage.metrics_url}/metrics"))
    places.add_row("next", "classifleet classify PHOTO.jpg")
    places.add_row("", "classifleet bulk FOLDER --model imagenet --out results/")
    console.print(places)
