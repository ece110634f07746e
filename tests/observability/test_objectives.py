from __future__ import annotations

import pytest

from classifleet.config import Settings, SettingsError
from classifleet.worker.overview import objective_seconds


@pytest.mark.parametrize(
    ("given", "queue", "seconds"),
    [
        ("", "classify.default.interactive", 60),
        ("", "classify.default.bulk", 3600),
        ("interactive=5", "classify.gpu.interactive", 5),
        ("interactive=5", "classify.gpu.bulk", 3600),
        ("bulk=900,classify.gpu.bulk=7200", "classify.gpu.bulk", 7200),
        ("bulk=900,classify.gpu.bulk=7200", "classify.default.bulk", 900),
        ("", "of-another-kind", 3600),
    ],
)
def test_when_a_queue_is_late(given: str, queue: str, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLASSIFLEET_OBJECTIVE_SECONDS", given)
    assert objective_seconds(Settings.load().objective_seconds, queue) == seconds


def test_a_lane_that_there_is_not() -> None:
    with pytest.raises(SettingsError, match="neither a lane"):
        Settings.load(objective_seconds={"fast": 1})
