"""The object store fails: 11."""

from __future__ import annotations

import threading
from urllib.parse import urlsplit

import pytest

from tests.chaos.conftest import Scenario
from tests.chaos.proxy import Mode, Proxy
from tests.support import wait_until

FAULT_SECONDS = 10


@pytest.mark.chaos("11", "object store down, slow, 503, down at commit")
@pytest.mark.timeout(600)
def test_store(scenario: Scenario) -> None:
    """Photos come from elsewhere: an image whose store is away has an error of its own, and that is right."""
    port = urlsplit(scenario.place.s3.endpoint_url).port
    assert port is not None
    with (
        Proxy.before(port) as proxy,
        scenario.arena(settings={"S3_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}) as it,
    ):
        it.start(2)
        with it.load(ref=it.place.file):
            for mode in (Mode.DOWN, Mode.SLOW, Mode.BUSY):
                it.inject(lambda mode=mode: proxy.become(mode))
                threading.Event().wait(FAULT_SECONDS)  # the fault's length
                proxy.become(Mode.PASS)
                before = it.observer.count("done")
                wait_until(lambda before=before: it.observer.count("done") > before + 100, "work to go on", 60)
            it.gated("at-commit", chunks=4, sink=it.sink)
            wait_until(lambda: it.place.web.waiting("at-commit") == 4, "four chunks at work", 60)
            it.inject(lambda: proxy.become(Mode.DOWN))
            before_requests = proxy.refused
            it.place.web.open("at-commit")
            wait_until(lambda: proxy.refused > before_requests + 4, "parts to be refused", 60)
            proxy.become(Mode.PASS)
