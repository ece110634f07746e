"""Which Redis servers are refused, for what only another kind of server says of itself in INFO."""

from __future__ import annotations

from typing import Any

import pytest

from classifleet.config import Keys
from classifleet.ledger import Problem, problems


class FakeServer:
    """A server of which only INFO is known."""

    def __init__(self, **info: object) -> None:
        self._info = {"redis_version": "7.2.0", "cluster_enabled": 0, "aof_enabled": 1, **info}

    def info(self) -> dict[str, object]:
        return self._info

    def get(self, key: str) -> None:
        return None


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({}, []),
        ({"redis_version": "6.2.0"}, []),
        ({"redis_version": "6.0.16"}, ["it is version 6.0.16"]),
        ({"redis_version": "5.0.7"}, ["it is version 5.0.7"]),
        ({"redis_version": "10.0.0"}, []),
        ({"redis_version": "7"}, []),
        ({"redis_version": "255.255.255"}, []),
        ({"cluster_enabled": 1}, ["it is a Redis Cluster"]),
        ({"redis_version": "6.0.0", "cluster_enabled": 1}, ["it is version 6.0.0", "it is a Redis Cluster"]),
    ],
)
def test_old_servers_and_clusters_are_refused(info: dict[str, object], expected: list[str]) -> None:
    server: Any = FakeServer(**info)
    assert [problem.what for problem in problems(server, Keys("x"), ephemeral=False)] == expected


def test_a_problem_reads_as_one_clause() -> None:
    assert str(Problem("it is old", "use a newer one")) == "it is old; use a newer one"
