"""The cable between a worker and everything else is unplugged: 8."""

from __future__ import annotations

import threading
from urllib.parse import urlsplit

import pytest

from tests.chaos.arena import WORKER
from tests.chaos.conftest import Scenario
from tests.chaos.network import cable
from tests.chaos.proxy import Proxy
from tests.support import wait_until

UNPLUGGED_SECONDS = 60


@pytest.mark.chaos("8", "link down for 60 s between network namespaces")
@pytest.mark.timeout(600)
def test_unplugged(scenario: Scenario) -> None:
    """The cut-off worker's chunks go to others; it finds back by itself, and what it finished counts once."""
    s3_port = urlsplit(scenario.place.s3.endpoint_url).port
    assert s3_port is not None
    with cable() as line, Proxy.before(s3_port, line.here) as s3:
        options = ("--bind", "127.0.0.1", line.here, "--protected-mode", "no")
        with scenario.arena(redis_options=options) as it:
            it.start(1, wait=False)
            [far] = it.start(
                1,
                command=(*line.inside, *WORKER),
                wait=False,
                BROKER_URL=f"redis://{line.here}:{it.redis.port}/0",
                REDIS_URL=f"redis://{line.here}:{it.redis.port}/0",
                S3_ENDPOINT_URL=f"http://{line.here}:{s3.port}",
                HTTP_HOST=line.there,
            )
            wait_until(lambda: '"event": "ready"' in far.process.log.read_text(), "the far worker to be ready", 60)
            with it.load(ref=it.place.file):
                it.inject(line.unplug, it.victim([far]))
                threading.Event().wait(UNPLUGGED_SECONDS if scenario.full else 10)  # the fault's length
                line.plug()
                wait_until(lambda: it.observer.at_work({far.process.pid}), "the far worker to be back", 90)
