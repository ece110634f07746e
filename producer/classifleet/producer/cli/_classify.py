"""`classifleet classify`: a few images, answered here and now."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from classifleet.config import ClassifleetError, ErrorCode, MissingExtra, Settings
from classifleet.producer._request import RequestOptions, make_request
from classifleet.producer.cli._connect import Connection, fleet_or_embedded, is_configured
from classifleet.producer.cli._inputs import Input, read_inputs
from classifleet.producer.cli._options import AnswerFormat, BrokerUrl, ModelNames, RecordFormat, TopK, split
from classifleet.producer.cli._output import print_records
from classifleet.producer.cli._progress import say_models_missing, wait_for
from classifleet.producer.cli._terminal import EXIT_SOME_FAILED, fail, say, warn
from classifleet.producer.formats import FORMATS
from classifleet.producer.render import render, save_annotated
from classifleet.producer.result import Result

INTERACTIVE_CHUNK: Final = 8  # images per message: small, so that the first ones are answered early


def classify(
    refs: Annotated[list[str], typer.Argument(metavar="REF…", help="Files, URLs, s3://bucket/key, data: URIs.")],
    models: ModelNames = "imagenet",
    top_k: TopK = 5,
    format: Annotated[  # noqa: A002 - the option's name
        AnswerFormat, typer.Option("--format", help="How to print the answers.")
    ] = AnswerFormat.TABLE,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format native.")] = False,
    save: Annotated[
        Path | None, typer.Option("--save", help="Folder for the pictures with their labels drawn on.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answers.")] = 120.0,
    broker_url: BrokerUrl = None,
) -> None:
    """Classify images and print the answers. Without a broker it starts an embedded fleet for the command.

    Exit code 1 if an image could not be classified, or its picture could not be saved.

    **Examples**

    ```
    classifleet classify cat.jpg
    classifleet classify --models imagenet,nsfw --top-k 3 cat.jpg dog.jpg
    classifleet classify https://example.com/a.jpg s3://bucket/b.png
    classifleet classify --format roboflow photos/*.jpg > answers.ndjson
    classifleet classify --save labelled/ cat.jpg
    ```
    """
    shape = AnswerFormat.NATIVE if as_json else format
    settings = Settings.load(broker_url=broker_url)
    names = split(models)
    every_class = shape is not AnswerFormat.TABLE and FORMATS[shape].every_class
    options = RequestOptions(top_k=top_k, scores="all" if every_class else "top", lane="interactive")
    make_request(settings, job=None, models=names, options=options, lane="interactive")  # refuses what is wrong
    if save is not None:
        _prepare(save)
    inputs = read_inputs(refs, settings, embedded=not is_configured(broker_url))
    with fleet_or_embedded(broker_url, models=names, worker={}) as connection:
        results = _answers(connection, inputs, names, options, timeout)
        _print(results, shape, top_k)
        saved = save is None or _save(inputs, results, save, settings)
    if all(result.error is not None and result.error.code is ErrorCode.MODEL_NOT_FOUND for result in results):
        say_models_missing(names)
    if not saved or not all(result.ok for result in results):
        raise typer.Exit(EXIT_SOME_FAILED)


def _answers(
    connection: Connection, inputs: Sequence[Input], models: Sequence[str], options: RequestOptions, timeout: float
) -> list[Result]:
    """The results in the order of the inputs. Nobody would ask for them later: giving up cancels the job."""
    refs = {one.id: one.ref for one in inputs}
    job = connection.fleet.submit_many(refs.items(), models=models, chunk_size=INTERACTIVE_CHUNK, **options)
    try:
        wait_for(connection, job, timeout)
    except BaseException:
        job.cancel()
        raise
    by_id = {result.id: result for result in job.results(follow=False)}
    return [by_id[one.id] for one in inputs]


def _print(results: Sequence[Result], shape: AnswerFormat, top_k: int) -> None:
    if shape is AnswerFormat.TABLE:
        Console().print(render(results, top_k=top_k))
    else:
        print_records(results, RecordFormat(shape.value))


def _prepare(folder: Path) -> None:
    if importlib.util.find_spec("PIL") is None:
        raise MissingExtra("worker", "--save")
    folder.mkdir(parents=True, exist_ok=True)


def _save(inputs: Sequence[Input], results: Sequence[Result], folder: Path, settings: Settings) -> bool:
    """Write the pictures; false if one could not be."""
    complete = True
    for number, (one, result) in enumerate(zip(inputs, results, strict=True), 1):
        if not any(answer.ok for answer in result.models.values()):
            warn(f"not saved: {one.id} has no answer")
            continue
        target = folder / f"{number:03d}-{one.stem}.jpg"
        try:
            save_annotated(one.read(settings), result, target)
        except (ClassifleetError, OSError) as error:
            complete = False
            fail(f"not saved: {one.id}: {error}")
        else:
            say(f"saved {target}")
    return complete
