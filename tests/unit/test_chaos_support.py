"""What the chaos suite's own judgements and its table rest on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import recovery, report
from tests.chaos.groups import limited_group
from tests.chaos.observer import AtWork


def recovered(seconds: float | None) -> recovery.Recovery:
    """A fault with one chunk in flight, and when that was committed."""
    found = recovery.Recovery([AtWork("j", "0", 1, 8, 1)], by_others=True)
    if seconds is not None:
        found._left, found.all_seconds = [], seconds
    return found


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        ([], []),
        ([3.0, 60.0], []),
        ([60.1, 3.0], ["the work in flight at 1 faults took longer than 60 s to be committed"]),
        ([None], ["1 chunks that were in flight at a fault have no commit"]),
    ],
)
def test_recoveries_have_a_bound(seconds: list[float | None], says: list[str]) -> None:
    assert recovery.problems([recovered(each) for each in seconds], 60) == says


def test_a_scenario_that_cannot_run_is_in_the_table() -> None:
    rows = [report.skipped("12b", "a decoder that hoards", "no cgroup"), report.failed("3", "SIGTERM", 9, 1)]
    lines = report.table(rows)
    assert lines[1].startswith("3 ")
    assert lines[2].startswith("12b ")
    assert lines[2].endswith("skipped: no cgroup")


@pytest.mark.parametrize(
    ("made", "file"),
    [
        ("memory", "memory/mine/memory.limit_in_bytes"),
        ("cgroup.controllers", "mine/memory.max"),
    ],
)
def test_a_group_of_either_version_of_cgroups(tmp_path: Path, made: str, file: str) -> None:
    (tmp_path / made).mkdir()
    group = limited_group(tmp_path, "mine", 4096)
    assert (tmp_path / file).read_text() == "4096"
    assert group == (tmp_path / file).parent
