"""The number of series does not grow with images, jobs, hosts, errors or whatever producers make up."""

from __future__ import annotations

import ast
import asyncio
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import prometheus_client.core
import pytest
from aiohttp import web
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest

from classifleet.config import ErrorCode, ImageError, Record
from classifleet.worker.answers import failed_answer
from classifleet.worker.commits import UNKNOWN_MODEL, _count
from classifleet.worker.health import HealthServer
from classifleet.worker.ingest import Fetcher
from classifleet.worker.instruments import CLASSIFICATIONS, REGISTRY, STAGE_DURATION, observe
from tests.support.web import IMAGE, LOOPBACK, answers, fetching, get, serve

ROOT = Path(__file__).parents[2]
INSTRUMENTS = ROOT / "worker" / "classifleet" / "worker" / "instruments.py"
MAKERS = {
    name
    for name, value in vars(prometheus_client.core).items()
    if isinstance(value, type) and issubclass(value, MetricWrapperBase | Metric)
}
HOSTS = 1000
IMAGES = 1_000_000
CHUNK = 1000
QUEUES = ("classify.default.bulk", "classify.default.interactive")


def series() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in REGISTRY.collect()
        for sample in family.samples
    }


def test_a_thousand_hosts_good_and_bad() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        number = int(request.host.split(".")[0][1:])
        status = (200, 404, 503, 403)[number % 4]
        return web.Response(status=status, body=IMAGE[:1000])

    async def fetch_from(numbers: range) -> set[str]:
        async with (
            serve(handler) as site,
            fetching(f"{LOOPBACK}:{site.port}", getaddrinfo=answers([LOOPBACK])) as fetcher,
        ):
            ends = await asyncio.gather(*(outcome(fetcher, site.url(host=f"h{n}.example")) for n in numbers))
            return set(ends)

    first = asyncio.run(fetch_from(range(8)))
    before = series()
    assert (
        asyncio.run(fetch_from(range(8, HOSTS + 8))) == first == {"ok", "not_found", "fetch_failed", "access_denied"}
    )
    assert series() == before


async def outcome(fetcher: Fetcher, url: str) -> str:
    try:
        await get(fetcher, url)
    except ImageError as error:
        return error.code.value
    return "ok"


def chunk_of(number: int) -> list[Record]:
    """Records of one job, with ids, references, messages and names of models that no other has."""
    codes = list(ErrorCode)
    records: list[Record] = []
    for index in range(CHUNK):
        name = f"{number}-{index}"
        error = ImageError(codes[index % len(codes)], f"of {name} at https://{name}.example/{name}")
        unknown = ImageError(ErrorCode.MODEL_NOT_FOUND, f"this worker has no model {name!r}")
        failed = {"imagenet@1": failed_answer(error)} if error.code is not ErrorCode.MODEL_NOT_FOUND else {}
        record: Record = {
            "v": 1, "id": name, "job": f"job-{number}", "ref": f"https://{name}.example/", "status": "error",
            "error": error.as_info(), "models": {**failed, f"{name}@1": failed_answer(unknown)},
            "attempt": number, "worker": name, "timings_ms": {}, "finished_at": "",
        }  # fmt: skip
        records.append(record)
    return records


def test_a_million_images() -> None:
    shapes = [chunk_of(number) for number in range(20)]

    def count(number: int) -> None:
        _count(shapes[number % len(shapes)], QUEUES[number % 2])

    for number in range(2):
        count(number)
    before = series()
    for number in range(IMAGES // CHUNK):
        count(number)
    assert series() == before
    assert {labels for name, labels in before if "unknown" in str(labels)} == {
        (("model", UNKNOWN_MODEL), ("outcome", "model_not_found"))
    }


def test_what_labels_there_are() -> None:
    """None of them may hold a host, a job, an image or a message."""
    names = {name for _, labels in series() for name, _ in labels}
    bounded = {"queue", "outcome", "model", "stage", "reason", "code", "lane", "dependency", "state", "what", "pool"}
    of_a_model = {"digest", "backend", "device", "speedup", "agreement"}
    assert names <= bounded | of_a_model | {"le"}
    assert CLASSIFICATIONS._labelnames == ("model", "outcome")


@pytest.fixture
def metrics() -> Iterator[str]:
    server = HealthServer("127.0.0.1", 0, {})
    server.start()
    yield f"{server.url}/metrics"
    server.close()


def test_a_trace_is_an_example_of_its_bucket_where_the_format_has_examples(metrics: str) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    observe(STAGE_DURATION.labels("fetch"), 0.2, trace)
    observe(STAGE_DURATION.labels("decode"), 0.2)

    def read(accept: str) -> str:
        with urllib.request.urlopen(urllib.request.Request(metrics, headers={"Accept": accept}), timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    lines = read("application/openmetrics-text; version=1.0.0").splitlines()
    examples = [line for line in lines if trace in line]
    assert len(examples) == 1
    assert re.match(
        r'classifleet_stage_duration_seconds_bucket\{le="0.25",stage="fetch"\} .* # \{trace_id=', examples[0]
    )
    assert trace not in read("text/plain")
    assert trace in generate_latest(REGISTRY).decode()


def makes_metrics(source: str) -> bool:
    """Whether a module calls a class of metrics of prometheus_client, by whatever name it goes there."""
    nodes = list(ast.walk(ast.parse(source)))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    origins = {
        alias.asname or alias.name: f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
        for node in imports
        for alias in node.names
    }
    called = [ast.unparse(node.func).partition(".") for node in nodes if isinstance(node, ast.Call)]
    made = [f"{origins.get(head, '')}{dot}{rest}" for head, dot, rest in called]
    return any(name.startswith("prometheus_client.") and name.rpartition(".")[2] in MAKERS for name in made)


def test_metrics_are_made_in_one_module_only() -> None:
    """Which is where the tests above look, and docs/metrics.md."""
    modules = [file for part in ("config", "producer", "worker") for file in (ROOT / part).rglob("*.py")]
    assert [file for file in modules if makes_metrics(file.read_text())] == [INSTRUMENTS]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from prometheus_client import Counter as C\nC('a', 'b')", True),
        ("from prometheus_client.core import GaugeMetricFamily\nGaugeMetricFamily('a', 'b')", True),
        ("import prometheus_client as p\np.Histogram('a', 'b')", True),
        ("from collections import Counter\nfrom prometheus_client import Histogram\nCounter()", False),
    ],
)
def test_what_makes_a_metric(source: str, found: bool) -> None:
    assert makes_metrics(source) is found


def test_no_second_series_for_when_a_metric_was_made() -> None:
    assert not [name for name, _ in series() if name.endswith("_created")]
