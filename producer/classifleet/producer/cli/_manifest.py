"""Manifests: files that list images, a line each.

    .txt              a reference or path a line
    .jsonl, .ndjson   a string, or an object with `ref` and optionally `id` and `meta`, a line
    .csv              a header with a column `ref` and optionally `id`

For `ref` one may also write `url`, `path` or `image`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from classifleet.config import InvalidRequest, Item
from classifleet.config.payload import explain

SUFFIXES: Final = (".txt", ".jsonl", ".ndjson", ".csv")
REF_COLUMNS: Final = ("ref", "url", "path", "image")
LONGEST_FIELD_CHARS: Final = 64 << 20  # a data: reference in a CSV file


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a manifest."""

    line: int
    id: str
    ref: str
    meta: Mapping[str, str] | None = None


def read_rows(path: Path) -> Iterator[Row]:
    """The images of a manifest, lazily.

    Raises:
        InvalidRequest: A line is wrong; says which and why.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            match path.suffix.lower():
                case ".txt":
                    yield from _plain(file)
                case ".csv":
                    yield from _csv(path, file)
                case _:
                    yield from _jsonl(path, file)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not UTF-8: {error.reason} at byte {error.start} of a block") from None
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror or error}") from None


def _plain(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if text := line.strip():
            yield Row(number, str(number), text)


def _csv(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD_CHARS)
    rows = csv.DictReader(lines)
    try:
        column = next((name for name in REF_COLUMNS if name in (rows.fieldnames or ())), None)
        if column is None:
            raise InvalidRequest(f"{path}: its first line names no column {' or '.join(REF_COLUMNS)}")
        for row in rows:
            if None in row:
                raise InvalidRequest(f"{path}, line {rows.line_num}: more fields than in line 1; quote commas")
            yield _row(path, rows.line_num, row.get("id"), row.get(column))
    except csv.Error as error:
        raise InvalidRequest(f"{path}, line {rows.line_num}: {error}") from None


def _jsonl(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidRequest(f"{path}, line {number}: not JSON: {error}") from None
        if isinstance(row, str):
            row = {"ref": row}
        if not isinstance(row, dict):
            raise InvalidRequest(f"{path}, line {number}: expected an object or a string")
        ref = next((row[name] for name in REF_COLUMNS if name in row), None)
        yield _row(path, number, row.get("id"), ref, row.get("meta"))


def _row(path: Path, number: int, image_id: Any, ref: Any, meta: Any = None) -> Row:
    if not isinstance(ref, str) or not ref.strip():
        raise InvalidRequest(f"{path}, line {number}: it has no {' or '.join(REF_COLUMNS)}")
    image_id = str(number) if image_id in (None, "") else str(image_id)
    try:
        Item.model_validate({"id": image_id, "ref": "", "meta": meta})
    except ValidationError as error:
        raise InvalidRequest(f"{path}, line {number}: {explain(error)}") from None
    return Row(number, image_id, ref.strip(), meta)
