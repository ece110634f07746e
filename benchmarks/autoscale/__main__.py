"""Simulate how fleets are scaled, and bring the table and the pictures of `docs/autoscaling.md` up to date.

    .venv/bin/python -m benchmarks.autoscale            write them
    .venv/bin/python -m benchmarks.autoscale --print    only print the table

A CPU replica's rate is what `benchmarks/fleet.py --json benchmarks/results/fleet.json` has measured.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.autoscale.bars import bars
from benchmarks.autoscale.report import picture, table
from benchmarks.autoscale.scenarios import Outcome, measured_kind, play_all

DOCS: Final = Path(__file__).parents[2] / "docs"
PAGE: Final = DOCS / "autoscaling.md"
PICTURES: Final[dict[Path, Callable[[Sequence[Outcome]], str]]] = {
    DOCS / "images" / "autoscaling.svg": picture,
    DOCS / "images" / "autoscaling-figures.svg": bars,
}
BEGIN: Final = "<!-- Written by `python -m benchmarks.autoscale` -->\n"
END: Final = "\n<!-- until here -->"


def main() -> None:
    """Run all scenarios; some seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", dest="only_print", help="write no file")
    only_print = parser.parse_args().only_print
    outcomes = list(play_all(measured_kind()))
    print(table(outcomes))
    if not only_print:
        PAGE.write_text(with_table(PAGE.read_text(), table(outcomes)))
        for path, draw in PICTURES.items():
            path.write_text(draw(outcomes))


def with_table(page: str, text: str) -> str:
    """The page with another table."""
    return re.sub(f"(?<={re.escape(BEGIN)}).*(?={re.escape(END)})", lambda _: text, page, flags=re.DOTALL)


if __name__ == "__main__":
    main()
