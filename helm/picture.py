"""Draw the dashboard as a picture for the docs, from what a Prometheus holds, without a Grafana.

.venv/bin/python helm/picture.py http://localhost:9090 docs/images/dashboard.svg --minutes 10
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

DASHBOARD: Final = Path(__file__).parent / "classifleet" / "files" / "dashboards" / "classifleet.json"
POINTS: Final = 90
COLORS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#000000")
CELL_WIDTH, CELL_HEIGHT, COLUMNS = 50, 19, 24  # of Grafana's grid, in pixels
WIDTH: Final = CELL_WIDTH * COLUMNS
MARGIN, HEAD, TALL = 30, 30, 96
LEGEND: Final = 110
_UNITS: Final = {"short": "", "bool_on_off": "", "s": " s", "percentunit": " %", "bytes": " MB", "ops": "/s"}
_SCALES: Final = {"percentunit": 100.0, "bytes": 1e-6}

Panel = dict[str, Any]
Series = dict[str, list[tuple[float, float]]]


def read(url: str, panel: Panel, minutes: float, end: float) -> Series:
    """A panel's series by legend: points in seconds before the end, without those that are no number."""
    found: Series = {}
    step = minutes * 60 / POINTS
    for target in panel["targets"]:
        query = target["expr"]
        for name, value in (("namespace", ".*"), ("queue", ".*"), ("__rate_interval", "30s")):
            query = query.replace(f"${name}", value)
        asked = {"query": query, "start": end - minutes * 60, "end": end, "step": step}
        where = f"{url}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(where, timeout=30) as answer:  # noqa: S310 - the URL is the user's own
            for series in json.load(answer)["data"]["result"]:
                points = [(at - end, float(text)) for at, text in series["values"]]
                found[_named(target["legendFormat"], series["metric"])] = [
                    point for point in points if math.isfinite(point[1])
                ]
    return {name: points for name, points in found.items() if points}


def _named(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend).strip()


def draw(url: str, minutes: float) -> str:
    """The whole picture, as SVG."""
    end = time.time()
    parts: list[str] = []
    panels = json.loads(DASHBOARD.read_text())["panels"]
    for panel in panels:
        left, top = panel["gridPos"]["x"] * CELL_WIDTH, panel["gridPos"]["y"] * CELL_HEIGHT
        if panel["type"] == "row":
            text = f'<text x="8" y="{top + 15}" font-size="15" font-weight="bold">{escape(panel["title"])}</text>'
            parts.append(text)
        else:
            parts += _panel(panel, read(url, panel, minutes, end), left, top, minutes * 60)
    top = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * CELL_HEIGHT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" '
    style = 'font-family="sans-serif" font-size="10">'
    return "\n".join([head + style, f'<rect width="{WIDTH}" height="{top}" fill="white"/>', *parts, "</svg>", ""])


def _panel(panel: Panel, series: Series, left: int, top: int, seconds: float) -> Iterator[str]:
    shown = panel["fieldConfig"]["defaults"]
    scale = _SCALES.get(shown["unit"], 1.0)
    lines = {name: [(at, value * scale) for at, value in points] for name, points in series.items()}
    if shown["custom"]["stacking"]["mode"] == "normal":
        lines = _stacked(lines)
    most = max((value for points in lines.values() for _, value in points), default=0.0) or 1.0
    left, bottom, wide = left + MARGIN, top + HEAD + TALL, panel["gridPos"]["w"] * CELL_WIDTH - 2 * MARGIN
    unit = _UNITS.get(shown["unit"], shown["unit"].removeprefix("suffix:"))
    yield f'<text x="{left}" y="{top + 12}" font-weight="bold">{escape(panel["title"])}</text>'
    yield f'<text x="{left - 4}" y="{bottom}" text-anchor="end">0</text>'
    yield f'<text x="{left}" y="{top + 26}">{most:.3g}{escape(unit)}</text>'
    yield f'<path d="M{left} {bottom - TALL}v{TALL}h{wide}" fill="none" stroke="#999999"/>'
    x = left
    for index, (name, points) in enumerate(list(lines.items())[: len(COLORS)]):
        path, before = "", -math.inf
        for at, value in points:
            gap = at - before > 1.5 * seconds / POINTS
            path += f"{'M' if gap else 'L'}{left + wide * (1 + at / seconds):.0f} {bottom - TALL * value / most:.1f}"
            before = at
        yield f'<path d="{path}" fill="none" stroke="{COLORS[index]}" stroke-width="1.3"/>'
        if x + LEGEND <= left + wide + MARGIN:
            text = name if len(name) < 20 else f"{name[:18]}…"
            yield f'<text x="{x}" y="{bottom + 14}" fill="{COLORS[index]}">{escape(text)}</text>'
            x += LEGEND


def _stacked(lines: Series) -> Series:
    """Each on top of those before it."""
    below: dict[float, float] = {}
    for name, points in lines.items():
        lines[name] = [(at, value + below.get(at, 0.0)) for at, value in points]
        below.update(lines[name])
    return lines


def main() -> None:
    """Read the arguments, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("prometheus")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    given: Any = parser.parse_args()
    given.picture.write_text(draw(given.prometheus.rstrip("/"), given.minutes))


if __name__ == "__main__":
    main()
