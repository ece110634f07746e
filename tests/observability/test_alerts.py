"""The alerts: valid, each tested with promtool, each with a runbook, and about metrics that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from classifleet.config import Settings
from classifleet.producer.cli import app
from classifleet.worker.instruments import REGISTRY
from tests.support.prometheus import promtool

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm" / "classifleet" / "files" / "alerts" / "classifleet.yaml"
TESTS = Path(__file__).with_name("alerts.test.yaml")
RUNBOOKS = ROOT / "docs" / "runbooks.md"
NAMESPACE = 'namespace=~".*"'  # what the chart replaces
SEVERITIES = {"critical", "warning"}
SELECTOR = re.compile(r"\b((?:classifleet|kube)_\w+)(\{[^}]*\})?")


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


@pytest.fixture(params=sorted(alerts()))
def alert(request: pytest.FixtureRequest) -> dict[str, Any]:
    return alerts()[request.param]


def test_promtool_accepts_them() -> None:
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(alerts())} rules found" in done.stdout


def test_promtool_sees_each_fire_and_be_silent() -> None:
    done = promtool("test", "rules", TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    for fires in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) is fires} == set(alerts())


def test_each_says_what_is_wrong_and_where_to_read_on(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in SEVERITIES
    assert re.fullmatch(r"\d+[mh]", alert["for"])
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["summary"].endswith((".", ")."))
    assert alert["annotations"]["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"


def test_each_is_about_metrics_that_there_are_and_one_namespace(alert: dict[str, Any]) -> None:
    names = {sample.name for family in REGISTRY.collect() for sample in family.samples}
    names |= {family.name for family in REGISTRY.collect()}
    names |= {f"{family.name}_total" for family in REGISTRY.collect() if family.type == "counter"}
    names |= {f"{family.name}_{part}" for family in REGISTRY.collect() for part in ("sum", "count", "bucket")}
    selectors = SELECTOR.findall(alert["expr"])
    assert selectors
    for name, matchers in selectors:
        assert name.startswith("kube_") or name in names
        assert NAMESPACE in matchers


def test_each_has_a_runbook_and_each_runbook_an_alert() -> None:
    headings = re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert headings == list(alerts())


def test_a_runbook_starts_with_what_the_user_feels_and_ends_when_it_is_over() -> None:
    for entry in RUNBOOKS.read_text().split("\n## ")[1:]:
        parts = re.findall(r"^\*\*(.+?)\*\*", entry, re.MULTILINE)
        assert parts == ["What the user feels.", "See.", "Why.", "Do.", "Over when"], entry.splitlines()[0]


def test_runbooks_name_commands_and_settings_that_there_are() -> None:
    text = RUNBOOKS.read_text()
    commands = {
        tuple(words.split()) for words in re.findall(r"`classifleet ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)?)", text)
    }
    assert len(commands) > 5
    for command in commands:
        context = typer.Context(typer.main.get_command(app))
        for word in command:
            found = context.command.get_command(context, word)  # type: ignore[attr-defined]
            assert found is not None, command
            context = typer.Context(found, parent=context)
    known = {f"CLASSIFLEET_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"CLASSIFLEET_\w+", text)) <= known
