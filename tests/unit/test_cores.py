"""Decode threads follow the cores that the process may use."""

from __future__ import annotations

import os

import pytest

from classifleet.worker import cores

AFFINITY = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("limit", "affinity", "usable"),
    [
        ("max 100000", 8, 8),
        ("200000 100000", 8, 2),
        ("150000 100000", 8, 2),  # a core and a half: two threads
        ("50000 100000", 8, 1),
        ("1600000 100000", 8, 8),
        ("nonsense", 8, 8),
        ("", 8, 8),
        (None, 8, 8),  # no cgroup v2
        ("200000 100000", 1, 1),
    ],
)
def test_quota_and_affinity(limit, affinity, usable, tmp_path, monkeypatch):
    if limit is not None:
        (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(cores, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    assert cores.usable_cores() == usable


@pytest.mark.parametrize(("quota", "usable"), [("150000", 2), ("-1", 8), ("0", 8), (None, 8)])
def test_the_quota_of_the_first_version_of_cgroups(quota, usable, tmp_path, monkeypatch):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    if quota is not None:
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    monkeypatch.setattr(cores, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores.usable_cores() == usable


def test_here():
    assert 1 <= cores.usable_cores() <= AFFINITY
