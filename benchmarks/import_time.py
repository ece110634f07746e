"""How long `import classifleet.producer` takes in a new process (the aim: under 0.5 s), and what takes longest.

    .venv/bin/python benchmarks/import_time.py [--runs 15]

The figure is the median over the runs of the process with the import, less that of a process without it; the first
run, which may compile bytecode and fill the disk cache, is not counted.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from typing import Final

MODULE: Final = "classifleet.producer"
SLOWEST: Final = 8


def main() -> None:
    """Print the median, the spread, and the packages that take longest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    bare = statistics.median(seconds("pass", runs))
    found = [each - bare for each in seconds(f"import {MODULE}", runs)]
    print(f"import {MODULE}: {statistics.median(found):.3f} s", end=" ")
    print(f"(from {min(found):.3f} to {max(found):.3f} over {runs} runs; the interpreter alone takes {bare:.3f} s)")
    for package, part in slowest_packages():
        print(f"  {part:.3f} s  {package}")


def seconds(code: str, runs: int) -> list[float]:
    """Wall-clock time of each run but the first."""
    found = []
    for _ in range(runs + 1):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        found.append(time.perf_counter() - begun)
    return found[1:]


def slowest_packages() -> list[tuple[str, float]]:
    """The time that each top-level package spends in its own modules, once, by `-X importtime`."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {MODULE}"], check=True, capture_output=True, text=True
    )
    totals: dict[str, float] = {}
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", done.stderr):
        package = name.partition(".")[0]
        totals[package] = totals.get(package, 0.0) + int(own) / 1e6
    return sorted(totals.items(), key=lambda item: -item[1])[:SLOWEST]


if __name__ == "__main__":
    main()
