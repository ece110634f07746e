from __future__ import annotations

import threading

import pytest

from classifleet.worker import loading
from classifleet.worker.exits import EXIT_UNUSABLE


def test_a_model_that_hangs_while_it_is_loaded_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr("os._exit", leave)
    with loading._bounded("pets@1", 0.001):
        assert ended.wait(10)
    assert codes == [EXIT_UNUSABLE]


def test_a_model_that_loads_in_time_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os._exit", lambda _: pytest.fail("it loaded in time"))
    before = threading.active_count()
    with loading._bounded("pets@1", 60):
        pass
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(10)
    assert threading.active_count() == before
