"""`classifleet classify`: a few images, answered here and now."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from classifleet.config import ErrorCode, ImageError, InvalidRequest, Settings, parse_reference
from classifleet.config.reference import decode_data_uri
from classifleet.config.storage import open_store
from classifleet.producer._request import Ref
from classifleet.producer.cli._connect import BrokerUrl, ModelNames, TopK, fleet_or_embedded, split, stderr
from classifleet.producer.fleet import Fleet
from classifleet.producer.formats import FORMATS
from classifleet.producer.render import render, save_annotated
from classifleet.producer.result import Result

EXIT_SOME_FAILED: Final = 1
INTERACTIVE_CHUNK: Final = 8
SAVE_TIMEOUT_SECONDS: Final = 30


def classify(
    refs: Annotated[list[str], typer.Argument(metavar="REF…", help="Files, URLs, s3://bucket/key, data: URIs.")],
    models: ModelNames = "imagenet",
    top_k: TopK = 5,
    format: Annotated[  # noqa: A002 - the option's name
        str, typer.Option("--format", help=f"table, {', '.join(FORMATS)}.")
    ] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format native.")] = False,
    save: Annotated[
        Path | None, typer.Option("--save", help="Folder for the pictures with their labels drawn on.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answers.")] = 120.0,
    broker_url: BrokerUrl = None,
) -> None:
    """Classify images and print the answers. Without a broker it starts an embedded fleet for the command.

    Exit code 1 if an image could not be classified.

    Examples:
      classifleet classify cat.jpg

      classifleet classify --models imagenet,nsfw --top-k 3 https://example.com/a.jpg s3://bucket/b.png

      classifleet classify --format roboflow photos/*.jpg > answers.ndjson
    """
    shape = "native" if as_json else format
    if shape != "table" and shape not in FORMATS:
        raise InvalidRequest(f"the format {format!r} is none of table, {', '.join(FORMATS)}")
    inputs = {ref: _reference(ref) for ref in refs}
    names = split(models)
    needs_all = shape in ("label_map", "yandex")
    with fleet_or_embedded(broker_url, models=names, worker={}) as fleet:
        results = _run(fleet, inputs, names, top_k, scores_all=needs_all, timeout=timeout)
    _print(results, shape)
    if save is not None:
        _save(results, inputs, save)
    if not all(result.ok for result in results):
        raise typer.Exit(EXIT_SOME_FAILED)


def _reference(text: str) -> Ref:
    """A file that exists is read here; everything else is a reference for the worker."""
    path = Path(text)
    if text[:5].lower() != "data:" and path.is_file():
        return path
    if "://" not in text and text[:5].lower() != "data:":
        raise InvalidRequest(f"{text}: there is no such file, and it is not a URL")
    return text


def _run(
    fleet: Fleet, inputs: dict[str, Ref], models: list[str], top_k: int, *, scores_all: bool, timeout: float
) -> list[Result]:
    job = fleet.submit_many(
        inputs.items(),
        models=models,
        top_k=top_k,
        scores="all" if scores_all else "top",
        lane="interactive",
        chunk_size=INTERACTIVE_CHUNK,
    )
    try:
        job.wait(timeout)
    except KeyboardInterrupt:
        job.cancel()
        raise
    by_id = {result.id: result for result in job.results(follow=False)}
    return [by_id[ref] for ref in inputs]


def _print(results: list[Result], shape: str) -> None:
    if shape == "table":
        Console().print(render(results))
        return
    for result in results:
        names = [None] if shape == "native" or len(result.models) < 2 else list(result.models)
        for name in names:
            json.dump(result.to_dict(shape, model=name), sys.stdout, ensure_ascii=False)
            sys.stdout.write("\n")


def _save(results: list[Result], inputs: dict[str, Ref], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, result in enumerate(results, 1):
        if not result.ok:
            stderr.print(f"[yellow]not saved:[/] {result.id}: it was not classified")
            continue
        name = f"{number:03d}-{Path(result.id.partition('?')[0]).stem[:80] or 'image'}.jpg"
        save_annotated(_bytes_of(inputs[result.id]), result, folder / name)
        stderr.print(f"saved {folder / name}")


def _bytes_of(ref: Ref) -> bytes:
    """The image again, to draw on."""
    settings = Settings.load()
    if isinstance(ref, bytes):
        return ref
    if isinstance(ref, Path):
        return ref.read_bytes()
    reference = parse_reference(str(ref))
    match reference.scheme:
        case "data":
            return decode_data_uri(reference.location, max_bytes=settings.max_bytes)
        case "s3":
            return open_store(f"s3://{reference.bucket}", settings).get(reference.location)
        case "file":
            return Path(reference.location).read_bytes()
        case "http" | "https":
            with urllib.request.urlopen(reference.text, timeout=SAVE_TIMEOUT_SECONDS) as answer:  # noqa: S310
                data: bytes = answer.read(settings.max_bytes)
                return data
    raise ImageError(ErrorCode.INVALID_REFERENCE)
