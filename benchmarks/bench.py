"""What `make bench` runs: the benchmarks of benchmarks/RESULTS.md, one after the other, then the page itself.

    .venv/bin/python benchmarks/bench.py [--quick] [bulk latency …]

About 35 minutes on 2 cores; the first time some more, for the peers' environments. Named are those in `PARTS`, and any
other file of this folder: those only print. --quick runs everything at a small size, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import _machine, report
from benchmarks._ours import MODEL, TUNING, has_model
from benchmarks._outcome import OUT, Outcome

HERE: Final = Path(__file__).parent
PARTS: Final[dict[str, tuple[str, ...]]] = {
    "bulk": ("--photos", "40", "--rounds", "1", "--long", "1", "--tune-seconds", "5"),
    "latency": ("--requests", "10", "--seconds", "2", "--rates", "2", "5", "--tune-seconds", "5"),
    "lanes": ("--requests", "10", "--rounds", "1", "--tune-seconds", "5"),
    "cost": ("--images", "1000"),
    "cancel": ("--images", "20000"),
    "scale": ("--workers", "1", "2", "--seconds", "3", "--rounds", "1", "--references", "10000"),
    "memory": ("--images", "5000", "--tune-seconds", "5"),
    "gpu": ("--photos", "16", "--rounds", "1", "--seconds", "0.5", "--tune-seconds", "5"),
}
"""Each part, and what makes it small."""


def main() -> None:
    """Run what is named, else all parts; the page is written even when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"default: {' '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    out = HERE / "out" / "quick" if options.quick else OUT
    out.mkdir(parents=True, exist_ok=True)
    if not has_model():
        raise SystemExit(f"there is no model {MODEL}: run `classifleet models build imagenet nsfw`")
    (out / report.MACHINE).write_text(json.dumps(_machine.describe(), indent=1) + "\n")
    if not options.parts:
        shutil.rmtree(TUNING, ignore_errors=True)  # tuned anew, on the machine as it is now
    failed = [part for part in options.parts or PARTS if not run(part, out, quick=options.quick)]
    page = out / "RESULTS.md" if options.quick else report.PAGE
    subprocess.run([sys.executable, report.__file__, "--out", out, "--page", page], check=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run(part: str, out: Path, *, quick: bool) -> bool:
    """Run one of them, show what it prints, and see to it that its outcome is kept."""
    script = HERE / f"{part}.py"
    if not script.exists():
        raise SystemExit(f"there is no benchmark {part}")
    small = PARTS.get(part, ()) if quick else ()
    kept = out / f"{part}.json"
    writes = part in PARTS and "_outcome" in script.read_text()
    print(f"\n== {part}", flush=True)
    began = time.time()
    if writes:
        return subprocess.run([sys.executable, script, *small, "--json", kept], check=False).returncode == 0
    status, text = _shown([sys.executable, str(script), *small])
    if status == 0 and part in PARTS:
        outcome = Outcome(part, part.capitalize(), values={"text": text}, began=began)
        outcome.write(kept)
    return status == 0


def _shown(command: Sequence[str]) -> tuple[int, str]:
    """Run a command; its output is printed as it comes, and returned."""
    lines = []
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


if __name__ == "__main__":
    main()
