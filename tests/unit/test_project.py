"""The files around the code agree with each other: requirements, constraints, reasons, version."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[Requirement]:
    """Direct requirements of the base install and of all extras."""
    texts = [
        *PROJECT["dependencies"],
        *(text for extra in PROJECT["optional-dependencies"].values() for text in extra),
    ]
    return [each for each in map(Requirement, texts) if each.name != PROJECT["name"]]


def constraints() -> dict[str, str]:
    """Pinned versions by name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==", 1) for line in lines if not line.startswith("#"))


def test_each_direct_requirement_is_pinned_within_its_range_and_nothing_else_is() -> None:
    pins = constraints()
    assert set(pins) == {normal(each.name) for each in requirements()}
    outside = [str(each) for each in requirements() if not each.specifier.contains(pins[normal(each.name)])]
    assert outside == []
    assert all(re.fullmatch(r"[0-9.]+(post[0-9]+)?", pin) for pin in pins.values())


def test_each_direct_requirement_has_its_reason() -> None:
    rows = re.findall(r"^\|(.+)\|.+\|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    reasons = {word for row in rows for word in re.split(r"[ ,|]+", row)}
    assert {normal(re.sub(r"\[.*", "", each.name)) for each in requirements()} <= reasons


def test_the_changelog_knows_the_version_that_is_installed() -> None:
    assert version("classifleet") == PROJECT["version"]
    assert f"\n## [{PROJECT['version']}] - " in (ROOT / "CHANGELOG.md").read_text()
