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
    file = tmp_path / "cpu.max"
    if limit is not None:
        file.write_text(limit)
    monkeypatch.setattr(cores, "_CGROUP_CPU_LIMIT", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    assert cores.usable_cores() == usable


def test_here():
    assert 1 <= cores.usable_cores() <= AFFINITY
