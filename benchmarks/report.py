"""Put the outcomes of benchmarks together: benchmarks/RESULTS.md from benchmarks/out/*.json.

.venv/bin/python benchmarks/report.py [--out benchmarks/out] [--page benchmarks/RESULTS.md]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import _machine
from benchmarks._outcome import OUT, Outcome

PAGE: Final = Path(__file__).with_name("RESULTS.md")
MACHINE: Final = "machine.json"
HEAD: Final = """# Measured

`make bench` prints and writes this page; `make bench ONLY=bulk` measures one part anew. Figures that are compared were
measured in one run, in turns; a figure of another machine, or of another day, is no comparison.
"""
INTRODUCTIONS: Final = {
    "bulk": """Each system classifies the same photos, given by path, with the same TorchScript file
(EfficientNet-Lite0); the clock runs until the client has every class. Peers run the file as it is, in fp32, with
batches of 8 where they batch, two processes of one thread each on two cores, and Pillow and torchvision as in their
manuals; their code is in `benchmarks/peers/served/`. torch, Pillow and torchvision are the same for all. *Ceiling*:
one process without queue, Redis or records, with the worker's own variant, decode threads and batch. What carries
`auto` and `fp32` is the extra `[openvino]`; the lines without it are beside them.""",
}


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    machine = options.out / MACHINE
    description = json.loads(machine.read_text()) if machine.exists() else _machine.describe()
    outcomes = [Outcome.read(path) for path in sorted(options.out.glob("*.json")) if path.name != MACHINE]
    options.page.write_text(page(description, outcomes))
    print(f"{options.page}: {len(outcomes)} parts")


def page(machine: Mapping[str, str], outcomes: Sequence[Outcome]) -> str:
    """The whole page."""
    ordered = sorted(outcomes, key=lambda outcome: _place(outcome.benchmark))
    parts = [HEAD, machine_section(machine), targets_section(ordered), *map(section, ordered)]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def machine_section(machine: Mapping[str, str]) -> str:
    """What it was measured on."""
    return "## Machine\n\n| what | which |\n| --- | --- |\n" + "".join(f"| {k} | {v} |\n" for k, v in machine.items())


def targets_section(outcomes: Sequence[Outcome]) -> str:
    """Every target with what was found."""
    rows = [
        f"| {outcome.benchmark} | {each.name} | {each.target} | {each.found} | {'yes' if each.met else '**no**'} |"
        for outcome in outcomes
        for each in outcome.targets
    ]
    if not rows:
        return ""
    head = "## Targets\n\n| part | what | target | found | met |\n| --- | --- | --- | --- | --- |\n"
    return head + "\n".join(rows) + "\n"


def section(outcome: Outcome) -> str:
    """One benchmark."""
    lines = [f"## {outcome.title}", ""]
    if introduction := INTRODUCTIONS.get(outcome.benchmark):
        lines += [introduction, ""]
    for table in outcome.tables:
        lines += [f"**{table.title}**", "", table.markdown(), ""]
    if text := outcome.values.get("text"):
        lines += ["```text", str(text).strip(), "```", ""]
    lines += [f"- {note}" for note in outcome.notes]
    command = f"`benchmarks/{outcome.benchmark}.py`"
    lines += ["", f"{command}, {outcome.seconds / 60:.1f} minutes."]
    return "\n".join(lines) + "\n"


def _place(benchmark: str) -> int:
    order = ("bulk", "latency", "lanes", "cost", "cancel", "scale", "memory", "gpu")
    return order.index(benchmark) if benchmark in order else len(order)


if __name__ == "__main__":
    main()
