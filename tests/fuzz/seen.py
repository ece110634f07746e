"""Do we classify the picture that a person sees? Broken files, to the decoder and to a real browser.

    .venv/bin/python -m tests.fuzz.seen --first 0 --count 20000         (100 files a second; apt-get install chromium)
    .venv/bin/python -m tests.fuzz.seen --browser firefox --count 20000      (90 a second; apt-get install firefox-esr)

A file that one of the two refuses is passed over: nobody sees it, or nobody classifies it.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from classifleet.config.errors import ImageError
from classifleet.worker.decode import decode
from tests.fuzz.browser import BROWSERS, Browser, browser
from tests.fuzz.shapes import mutant

AT_A_TIME = 100
GRID = 8
MOST_LEVELS, MOST_MEAN_LEVELS = 60, 24
"""Of a cell of the grid, and of the whole: what ordinary colour profiles move, which we do not apply."""


def seen_by_us(data: bytes) -> NDArray[np.uint8] | None:
    """uint8 [h, w, 3] on white, or None if it is refused."""
    try:
        (picture,) = decode(data).pictures.values()
    except ImageError:
        return None
    return np.asarray(picture.image.convert("RGB"))


def difference(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> str:
    """In words; empty if both are the same picture."""
    if ours.shape != theirs.shape:
        return f"{ours.shape[:2]} and not {theirs.shape[:2]}"
    worst = np.abs(_cells(ours) - _cells(theirs)).max()
    mean = np.abs(ours.astype(int) - theirs).mean()
    return f"by {mean:.0f} levels, at most {worst:.0f}" if worst > MOST_LEVELS or mean > MOST_MEAN_LEVELS else ""


def _cells(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Means of the cells of a grid."""
    edges = [np.linspace(0, side, min(GRID, side) + 1).astype(int) for side in image.shape[:2]]
    sums = np.add.reduceat(np.add.reduceat(image.astype(float), edges[0][:-1], 0), edges[1][:-1], 1)
    means: NDArray[np.float64] = sums / np.outer(*map(np.diff, edges))[..., None]
    return means


def differing(shower: Browser, files: list[bytes]) -> list[str | None]:
    """How each picture differs from the browser's; None where one of us does not take it."""
    found: list[str | None] = []
    for data, theirs in zip(files, shower.show(files), strict=True):
        ours = seen_by_us(data) if theirs is not None else None
        if ours is None or theirs is None:
            found.append(None)
        elif difference(ours, theirs):  # alone, and once more: it is busy with a hundred
            (again,) = shower.show([data])
            found.append("not shown again" if again is None else difference(ours, again))
        else:
            found.append("")
    return found


def main() -> None:
    """Print the seeds of those that differ, and how many there were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", choices=BROWSERS, default="chromium")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    options = parser.parse_args()
    tried, compared, differ = 0, Counter[str](), 0
    began = time.monotonic()
    with browser(options.browser) as shower:
        for begin in range(options.first, options.first + options.count, AT_A_TIME):
            seeds = range(begin, min(begin + AT_A_TIME, options.first + options.count))
            kinds, files = zip(*map(mutant, seeds), strict=True)
            for seed, kind, words in zip(seeds, kinds, differing(shower, list(files)), strict=True):
                tried += 1
                compared[kind] += words is not None
                if words:
                    differ += 1
                    print(f"{seed} {kind} {words}", flush=True)
    seconds = time.monotonic() - began
    print(f"{tried:,} files in {seconds:.0f} s; {differ} of {compared.total():,} that both show differ")
    print(f"shown by both: {dict(compared)}")


if __name__ == "__main__":
    main()
