"""What a benchmark has found: tables, targets and notes, printed for a person and written as JSON for `report.py`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

OUT: Final = Path(__file__).parent / "out"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; every cell is text, as it is shown."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        """For a terminal: the first column left, the others right."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[n]) for line in lines) for n in range(len(self.columns))]
        return "\n".join("  ".join(_aligned(line, widths)).rstrip() for line in lines)

    def markdown(self) -> str:
        """For a page."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.columns, rule, *self.rows))


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that was promised, and the one that was found."""

    name: str
    target: str
    found: str
    met: bool


@dataclass(slots=True)
class Outcome:
    """Everything that one benchmark says."""

    benchmark: str
    title: str
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.time)
    seconds: float = 0.0

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table and print it."""
        table = Table(title, list(columns), [[str(cell) for cell in row] for row in rows])
        self.tables.append(table)
        print(f"\n{title}\n{table.text()}", flush=True)

    def target(self, name: str, target: str, found: str, *, met: bool) -> None:
        """Add a target and print its verdict."""
        self.targets.append(Target(name, target, found, met))
        print(f"target: {name}: {target}; found {found}: {'met' if met else 'NOT met'}", flush=True)

    def note(self, text: str) -> None:
        """Add a remark and print it."""
        self.notes.append(text)
        print(f"note: {text}", flush=True)

    def write(self, path: Path | None) -> None:
        """Keep it as JSON, if a file is given."""
        self.seconds = time.time() - self.began
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` has kept.

        Raises:
            ValueError: It is something else.
        """
        fields = json.loads(path.read_text())
        try:
            tables = [Table(**table) for table in fields.pop("tables")]
            targets = [Target(**target) for target in fields.pop("targets")]
            return cls(**fields, tables=tables, targets=targets)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: no outcome of a benchmark: {error}") from error


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows --json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the outcome here, for report.py")
    return parser


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(cells, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
