"""Traces across processes: submitted here in spans of the SDK's in-memory exporter, worked on in a worker process that
sends its spans over OTLP to a collector on loopback."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from PIL import Image

from classifleet.producer import AsyncFleet, Fleet
from classifleet.worker.tracing import DETAILED_CHUNKS
from tests.support import RedisServer, wait_until
from tests.support.collector import Collector, Span, start_collector
from tests.support.fleet import Worker, start_worker
from tests.support.rigged_worker import YELLOW
from tests.support.tiny import MODEL, add_tiny

RIGGED = (sys.executable, "-m", "tests.support.rigged_worker", "worker")
INTERACTIVE, BULK = "process classify.default.interactive", "process classify.default.bulk"
CHUNKS = DETAILED_CHUNKS + 4
STAGES = ("fetch", "decode", "batch_wait", "forward")


class Caller:
    """A host that traces its requests, with a provider of its own: none is set for the process."""

    def __init__(self) -> None:
        self.exported = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exported))
        self._tracer = provider.get_tracer("a shop")

    @contextmanager
    def request(self) -> Iterator[str]:
        """A request; the id of its trace."""
        with self._tracer.start_as_current_span("upload") as span:
            yield f"{span.get_span_context().trace_id:032x}"

    def span_id(self, trace: str) -> str:
        """Of the request that is over."""
        ids = [span.get_span_context() for span in self.exported.get_finished_spans()]
        [span_id] = [f"{each.span_id:016x}" for each in ids if f"{each.trace_id:032x}" == trace]
        return span_id


@dataclass(frozen=True, slots=True)
class Traced:
    url: str
    worker: Worker
    collector: Collector
    caller: Caller
    folder: Path

    def one(self, name: str, trace: str) -> Span:
        """The only span of that name in a trace, once it has arrived."""
        wait_until(lambda: self.collector.named(name, trace), f"the span {name}", 20)
        [span] = self.collector.named(name, trace)
        return span

    def children(self, span: Span, trace: str) -> dict[str, Span]:
        return {
            each.name: each for each in list(self.collector.spans) if (each.trace, each.parent) == (trace, span.id)
        }

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.worker.process.log.read_text().splitlines()]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    folder = tmp_path_factory.mktemp("traced")
    Image.new("RGB", (64, 64), (200, 10, 10)).save(folder / "red.png")
    Image.new("RGB", (64, 64), YELLOW).save(folder / "yellow.png")
    settings = {
        "MODEL_REPOSITORY": str(add_tiny(folder / "models")),
        "FILE_ROOTS": str(folder),
        "SINK_ALLOW": f"file://{folder}/sink",
    }
    with pytest.MonkeyPatch.context() as patch, RedisServer.start(folder / "redis") as server, start_collector() as it:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", it.url)
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        url = f"{server.url}/0"
        with start_worker(url, folder / "worker.log", settings=settings, command=RIGGED) as worker:
            yield Traced(url, worker, it, Caller(), folder)


def test_one_image_from_submit_to_result(traced: Traced) -> None:
    with Fleet(traced.url) as fleet:
        with traced.caller.request() as trace:
            handle = fleet.submit(f"file://{traced.folder}/red.png", models=MODEL)
        result = handle.result(30)
    assert result.ok
    chunk = traced.one(INTERACTIVE, trace)
    asked = traced.caller.span_id(trace)
    assert chunk.parent == asked
    assert chunk.attributes["classifleet.job"] == handle.id
    assert chunk.attributes["classifleet.outcome"] == "committed"
    queue, batch = traced.one("queue", trace), traced.one("batch tiny@1", trace)
    assert (queue.parent, queue.end) == (asked, pytest.approx(chunk.start, abs=5e6))
    image = traced.one("image", trace)
    assert traced.children(chunk, trace).keys() == {"image", "commit"}
    assert image.attributes["classifleet.image.id"] == handle.id
    stages = traced.children(image, trace)
    assert stages.keys() == {*STAGES, "batch tiny@1"}
    assert batch.links == (image.id,)
    assert stages["forward"].links == (batch.id,)
    assert batch.attributes == {
        "classifleet.model": "tiny@1", "classifleet.batch.size": 1, "classifleet.batch.reason": "drained"
    }  # fmt: skip
    assert [stages[name].start for name in STAGES] == sorted(stages[name].start for name in STAGES)
    for name in STAGES:
        measured = result.timings[name] * 1e9
        assert stages[name].end - stages[name].start == pytest.approx(measured, abs=1e6), name
        assert chunk.start <= stages[name].start <= stages[name].end <= chunk.end
    assert traced.collector.resource["service.name"] == "classifleet-worker"
    assert traced.collector.resource["service.instance.id"] == result.to_dict()["worker"]
    assert traced.collector.resource["deployment.environment.name"] == "test"


def test_log_lines_and_metrics_lead_to_the_trace(traced: Traced) -> None:
    with traced.caller.request() as trace, Fleet(traced.url) as fleet:
        handle = fleet.submit(f"file://{traced.folder}/red.png", models=MODEL)
        handle.result(30)
    traced.one(INTERACTIVE, trace)
    [line] = [line for line in traced.lines() if line.get("trace_id") == trace]
    assert (line["event"], line["job"], line["chunk"], line["failed"]) == ("chunk", handle.id, "00000000", 0)
    ask = urllib.request.Request(
        f"{traced.worker.http_url}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(ask, timeout=5) as answer:
        examples = [text for text in answer.read().decode().splitlines() if f'trace_id="{trace}"' in text]
    for stage in (*STAGES, "commit"):
        assert any(f'stage="{stage}"' in text for text in examples), stage
    assert any("queue_wait_seconds_bucket" in text for text in examples)
    assert trace not in traced.worker.metrics()


def test_the_first_chunks_of_a_job(traced: Traced) -> None:
    """All chunks have spans, of the images those of the first chunks: also where one fails, and why."""
    names = ["missing", "yellow", *(["red"] * (2 * CHUNKS - 2))]
    with Fleet(traced.url) as fleet:
        with traced.caller.request() as trace:
            refs = (f"file://{traced.folder}/{name}.png" for name in names)
            job = fleet.submit_many(refs, models=MODEL, chunk_size=2, sink=f"file://{traced.folder}/sink")
        assert job.wait(60).failed == 2
    wait_until(lambda: len(traced.collector.named(BULK, trace)) == CHUNKS, "the spans", 20)
    chunks = traced.collector.named(BULK, trace)
    assert {span.attributes["classifleet.chunk"] for span in chunks} == {f"{n:08d}" for n in range(CHUNKS)}
    images = {span.attributes["classifleet.image.id"]: span for span in traced.collector.named("image", trace)}
    assert images.keys() == {str(number) for number in range(2 * DETAILED_CHUNKS)}
    assert traced.children(images["0"], trace)["fetch"].error == images["0"].error == "not_found"
    assert traced.children(images["1"], trace)["forward"].error == images["1"].error == "model_failed"
    assert not images["2"].error
    assert len(traced.collector.named("sink", trace)) == CHUNKS
    batches = [span for span in traced.collector.spans if span.name == "batch tiny@1" and span.trace == trace]
    linked = [link for span in batches for link in span.links]
    assert sorted(linked) == sorted(span.id for name, span in images.items() if name != "0")


def test_who_is_not_traced(traced: Traced) -> None:
    """No span, or one that is not sampled; and the worker begins no trace of its own."""
    unsampled = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("a shop")
    with Fleet(traced.url) as fleet:
        handles = [fleet.submit(f"file://{traced.folder}/red.png", models=MODEL)]
        with unsampled.start_as_current_span("upload"):
            handles.append(fleet.submit(f"file://{traced.folder}/red.png", models=MODEL))
        assert all(handle.result(30).ok for handle in handles)
        with traced.caller.request() as trace:
            fleet.submit(f"file://{traced.folder}/red.png", models=MODEL).result(30)
    traced.one(INTERACTIVE, trace)  # those before it would be there, too
    jobs = {span.attributes.get("classifleet.job") for span in traced.collector.spans}
    assert jobs.isdisjoint({handle.id for handle in handles})
    lines = [line for line in traced.lines() if line.get("job") == handles[0].id]
    assert lines
    assert all("trace_id" not in line for line in lines)


def carried(url: str, job: str) -> list[str]:
    """What the ledger keeps with the job's chunks."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        names = sorted(client.scan_iter(f"*chunk:{job}:*"))
        return [client.hget(name, "trace") or "" for name in names]


def test_the_trace_is_no_part_of_the_request(redis_url: str) -> None:
    caller = Caller()
    with Fleet(redis_url) as fleet:
        for _ in range(2):
            with caller.request() as trace:
                fleet.submit("data:,x", models=MODEL, id="the-same")
        with redis.Redis.from_url(redis_url) as client:
            [name] = client.scan_iter("*chunk:the-same:*")
            assert trace.encode() not in (client.hget(name, "payload") or b"")
    [kept] = carried(redis_url, "the-same")
    first, second = caller.exported.get_finished_spans()
    assert kept == f"00-{first.get_span_context().trace_id:032x}-{first.get_span_context().span_id:016x}-01"
    assert trace == f"{second.get_span_context().trace_id:032x}"


def test_an_async_caller(redis_url: str) -> None:
    """Tasks of one loop, each in its request: no trace goes with another's images."""
    caller = Caller()

    async def submit(fleet: AsyncFleet, job: str) -> str:
        with caller.request() as trace:
            await asyncio.sleep(0)
            await fleet.submit_many(["data:,x"] * CHUNKS, models=MODEL, job_id=job, chunk_size=1)
            return trace

    async def all_of_them() -> list[str]:
        async with AsyncFleet(redis_url) as fleet:
            return await asyncio.gather(*(submit(fleet, f"job-{number}") for number in range(3)))

    for number, trace in enumerate(asyncio.run(all_of_them())):
        kept = carried(redis_url, f"job-{number}")
        assert [text[3:35] for text in kept] == [trace] * CHUNKS
