"""Results on standard output, in any of the formats."""

from __future__ import annotations

from collections.abc import Iterable

from classifleet.config import FormatError, ImageError
from classifleet.producer.cli._options import RecordFormat
from classifleet.producer.cli._terminal import fail, print_json
from classifleet.producer.formats import FORMATS
from classifleet.producer.result import Result


def print_records(results: Iterable[Result], shape: RecordFormat) -> None:
    """Print results as JSON, one value a line; formats of one model have a line for each model.

    Formats without a place for an error leave such an image out: standard error says which, and why.
    """
    for result in results:
        names: list[str | None] = [None]
        if FORMATS[shape].one_model and result.models:
            names = list(result.models)
        for name in names:
            _print(result, shape, name)


def _print(result: Result, shape: RecordFormat, model: str | None) -> None:
    try:
        content = result.to_dict(shape, model=model)
    except ImageError as error:
        fail(f"{error} ({error.code})")
    except FormatError as error:
        fail(f"{result.id}: {error}")
    else:
        print_json(content)
