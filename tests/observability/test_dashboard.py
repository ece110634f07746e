"""The dashboard: up to date, valid for Grafana, and about metrics that there are, in their units."""

from __future__ import annotations

import itertools
import json
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from tests.support.environments import run

ROOT = Path(__file__).parents[2]
FILE = ROOT / "helm" / "classifleet" / "files" / "dashboards" / "classifleet.json"
PICTURE = ROOT / "helm" / "picture.py"
SCHEMAS = json.loads(Path(__file__).with_name("grafana.schema.json").read_text())
ROWS = [
    "Is it late?", "Is it keeping up?", "Where does the time go?", "Batch efficiency", "Fleet size", "Errors",
]  # fmt: skip
DASHBOARD = json.loads(FILE.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel, target) for panel in PANELS for target in panel["targets"]]


def errors(schema: str, value: Any, definition: str = "") -> list[str]:
    whole = SCHEMAS[schema]
    root = {"$ref": f"#/definitions/{definition}", "definitions": whole["definitions"]} if definition else whole
    return [f"{error.json_path}: {error.message}" for error in Draft7Validator(root).iter_errors(value)]


def test_it_is_what_the_script_writes() -> None:
    done = run(sys.executable, ROOT / "helm" / "dashboards.py", "--check")
    assert done.returncode == 0, done.stderr


def drawn(picture: Path) -> dict[str, int]:
    """How many lines each panel of a picture has, by its title."""
    parts = re.split(r'font-weight="bold">([^<]*)<', picture.read_text())[1:]
    return {
        unescape(title): body.count('stroke-width="1.3"') for title, body in zip(parts[::2], parts[1::2], strict=True)
    }


def test_the_picture_in_the_docs_has_every_panel_in_its_row() -> None:
    assert list(drawn(ROOT / "docs" / "images" / "dashboard.svg")) == [panel["title"] for panel in DASHBOARD["panels"]]


def test_grafana_s_schema() -> None:
    assert errors("dashboard", DASHBOARD) == []
    for panel in PANELS:
        assert errors("timeseries", panel["options"], "Options") == []
        assert errors("timeseries", panel["fieldConfig"]["defaults"]["custom"], "FieldConfig") == []
        for target in panel["targets"]:
            assert errors("prometheus", target) == []


def test_the_schema_finds_what_is_wrong() -> None:
    assert errors("dashboard", {**DASHBOARD, "panles": []})
    assert errors("timeseries", {**PANELS[0]["options"], "legend": {"placement": "middle"}}, "Options")


def test_rows_are_in_the_order_in_which_one_asks() -> None:
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == ROWS


def test_panels_lie_side_by_side() -> None:
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in DASHBOARD["panels"]]
    for x, _, w, _ in places:
        assert 0 <= x < x + w <= 24
    for (x, y, w, h), (x2, y2, w2, h2) in itertools.combinations(places, 2):
        assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_variables() -> None:
    found = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(found) == ["datasource", "namespace", "queue"]
    assert all(found[name]["allValue"] == ".*" for name in ("namespace", "queue"))
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS)))
    assert used == {"datasource", "namespace", "queue", "__rate_interval"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_units_are_right(panel: dict[str, Any]) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    assert unit.startswith("suffix: ") or unit in SCHEMAS["units"]
    names = {name for t in panel["targets"] for name in re.findall(r"\b(?:classifleet|kube)_\w+", t["expr"])}
    assert names
    rates = [bool(re.search(r"\brate\(", t["expr"])) for t in panel["targets"]]
    if unit == "s":
        assert all(re.search(r"_seconds(_bucket|_sum|_count)?$", name) for name in names)
    elif unit == "bytes":
        assert all(name.endswith("_bytes") for name in names)
        assert not any(rates)
    elif unit == "ops" or unit.endswith("/s"):
        assert all(rates) or names == {"classifleet_queue_images_per_second"}
    elif unit == "percentunit":
        assert all(" / " in t["expr"] for t in panel["targets"])


@pytest.mark.parametrize(("panel", "target"), QUERIES, ids=lambda value: value.get("title") or value["legendFormat"])
def test_queries(panel: dict[str, Any], target: dict[str, Any]) -> None:
    query = target["expr"]
    assert query.count("{") == query.count('namespace=~"$namespace"')
    by = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", query))))
    if "count(sum by" not in query:  # which has them to count them
        assert not by & {"instance", "pod", "host", "hostname"}
    assert not re.search(r"\bcount\(classifleet_models\{[^}]*\}\)", query), "which would count zeros"
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= by
    assert panel["description"]
