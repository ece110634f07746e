"""What the commands say. Answers go to standard output, all else to standard error.

What is said holds names and messages from outside: they are never read as markup, and control characters do not
reach the terminal.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import typer
from rich.console import Console
from rich.text import Text

EXIT_SOME_FAILED: Final = 1
EXIT_ERROR: Final = 2
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
EXIT_TERMINATED: Final = 143  # 128 + SIGTERM

stderr = Console(stderr=True, highlight=False)


def say(text: str, style: str = "") -> None:
    """Write a line to standard error; a line that is longer than the terminal is the terminal's to wrap."""
    stderr.print(Text(plain(text), style), soft_wrap=True)


def warn(text: str) -> None:
    """Say what the person should know of and need not stop for."""
    stderr.print(Text.assemble(("note: ", "yellow"), plain(text)), soft_wrap=True)


def fail(error: BaseException | str) -> None:
    """Say what went wrong, in one line."""
    stderr.print(Text.assemble(("error: ", "bold red"), plain(" ".join(str(error).split()))), soft_wrap=True)


def plain(text: str) -> str:
    """Text from outside as it may be shown: what does not print becomes an escape; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def print_json(content: Any) -> None:
    """Write one JSON value on one line to standard output."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    typer.echo(json.dumps(content, ensure_ascii=not utf8))
