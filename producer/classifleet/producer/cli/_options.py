"""Options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

BrokerUrl = Annotated[
    str | None, typer.Option("--broker-url", help="The fleet's broker [CLASSIFLEET_BROKER_URL].", show_default=False)
]
ModelNames = Annotated[
    str, typer.Option("--models", "--model", help="One or more models, by comma: `imagenet,nsfw@1`.")
]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="Classes to return, best first.")]


class RecordFormat(StrEnum):
    """How records are printed: the result formats of `classifleet.producer.formats`."""

    NATIVE = "native"
    LABEL_MAP = "label_map"
    ROBOFLOW = "roboflow"
    YANDEX = "yandex"
    MLKIT = "mlkit"


class AnswerFormat(StrEnum):
    """The same, and a table for people."""

    TABLE = "table"
    NATIVE = "native"
    LABEL_MAP = "label_map"
    ROBOFLOW = "roboflow"
    YANDEX = "yandex"
    MLKIT = "mlkit"


class Scores(StrEnum):
    """Which classes are recorded."""

    TOP = "top"
    ALL = "all"


def split(names: str) -> list[str]:
    """A list given by comma."""
    return [name.strip() for name in names.split(",") if name.strip()]
