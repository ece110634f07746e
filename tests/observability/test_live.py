"""A real Prometheus scrapes a real worker and a real exporter under load; alerts and panels find their data there.

All but what Kubernetes would say is real: that is one page of what kube-state-metrics shows of a release.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from classifleet.producer import Fleet
from tests.observability.test_alerts import RULES, SELECTOR, alerts
from tests.observability.test_dashboard import PANELS, PICTURE, QUERIES, drawn
from tests.support import RedisServer, wait_until
from tests.support.collector import Collector, start_collector
from tests.support.environments import run
from tests.support.fleet import Worker, start_worker
from tests.support.prometheus import NAMESPACE, Prometheus, promtool, start_prometheus
from tests.support.rigged_worker import YELLOW
from tests.support.tiny import MODEL, add_tiny

EXPORTER = (sys.executable, "-m", "classifleet.producer.cli", "exporter")
RIGGED = (sys.executable, "-m", "tests.support.rigged_worker", "worker")
CACHED = "cached"
SLOW_SECONDS = 2.0  # a fetch is slow after one
LATE_SECONDS = 0.3
_HPA = f'namespace="{NAMESPACE}", horizontalpodautoscaler="keda-hpa-fleet-classifleet-default"'
_POD = f'namespace="{NAMESPACE}", pod="fleet-classifleet-default-7d4b9c6f5-x2x7q"'
KUBE = f"""\
kube_horizontalpodautoscaler_status_desired_replicas{{{_HPA}}} 1
kube_horizontalpodautoscaler_spec_max_replicas{{{_HPA}}} 20
kube_pod_container_status_last_terminated_exitcode{{{_POD}, container="worker"}} 0
kube_pod_container_status_restarts_total{{{_POD}, container="worker"}} 1
kube_pod_init_container_status_restarts_total{{{_POD}, container="models"}} 0
"""
BOOL = re.compile(r"\s(>=|>|<|==)\s")
EXEMPLARS = "classifleet_stage_duration_seconds_bucket"


@dataclass(frozen=True, slots=True)
class Watched:
    prometheus: Prometheus
    worker: Worker
    exporter: Worker
    collector: Collector


@contextmanager
def neighbours() -> Iterator[str]:
    """What kube-state-metrics shows of a release, at /metrics, and a host that takes its time for anything else."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = KUBE.encode() if self.path == "/metrics" else b""
            if not body:
                ended.wait(SLOW_SECONDS)
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        ended.set()
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (64, 64), (200, 10, 10)).save(folder / "red.png")
    Image.new("RGB", (64, 64), YELLOW).save(folder / "yellow.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


@contextmanager
def loaded(url: str, images: Path, web: str, slow: str) -> Iterator[None]:
    """Both lanes, with and without sink, cache and deadline; some images fail, for reasons of theirs and ours."""
    names = ["red", "red", "red", "red", "red", "red", "broken", "missing", "yellow"]
    refs = [*(f"file://{images}/{name}.png" for name in names), f"{web}/coffee.jpg"] * 10
    ended = threading.Event()

    def submit() -> None:
        with Fleet(url) as fleet:
            for turn in itertools.count():
                job = fleet.submit_many(refs, models=MODEL, sink=f"file://{images}/sink" if turn % 2 else None)
                fleet.submit_many(refs, models=MODEL, deadline=LATE_SECONDS)
                fleet.submit(f"http://{slow}/{turn}.jpg", models=MODEL)
                for model in (CACHED, *(MODEL,) * 10):
                    fleet.submit(refs[0], models=model)
                while job.progress().state != "done":
                    if ended.wait(0.05):
                        return

    thread = threading.Thread(target=submit)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def rigged() -> Iterator[Collector]:
    """The environment of a worker that is in no hurry, pads its batches and sends traces."""
    with pytest.MonkeyPatch.context() as patch, start_collector() as collector:
        patch.setenv("RIGGED_SECONDS", "0.02")
        patch.setenv("RIGGED_SHAPES", "1")
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
        patch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.2")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        yield collector


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, images: Path, web: str) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    for model in (MODEL, CACHED):
        add_tiny(folder / "models", model)
    with (
        rigged() as collector,
        neighbours() as slow,
        RedisServer.start(folder / "redis", "--maxmemory", "512mb") as redis,
    ):
        given = {
            **{"MODEL_REPOSITORY": str(folder / "models"), "CONTENT_CACHE": CACHED, "MAX_BATCH": "8"},
            **{"FILE_ROOTS": str(images), "SINK_ALLOW": f"file://{images}", "DRAIN_SECONDS": "0"},
            **{"HTTP_ALLOW": f"{web.removeprefix('http://')},{slow}"},
        }
        url = f"{redis.url}/0"
        with (
            start_worker(url, folder / "worker.log", settings=given, command=RIGGED, wait=False) as worker,
            start_worker(url, folder / "exporter.log", settings={}, command=EXPORTER, wait=False) as exporter,
        ):
            worker.wait_ready()
            exporter.wait_ready()
            pages = {"workers": worker.http_url, "exporter": exporter.http_url, "kube-state-metrics": slow}
            targets = {job: page.removeprefix("http://") for job, page in pages.items()}
            with (
                loaded(url, images, web, slow),
                start_prometheus(folder / "prometheus", targets, RULES) as prometheus,
            ):
                yield Watched(prometheus, worker, exporter, collector)


def found(prometheus: Prometheus, query: str) -> list[dict[str, Any]]:
    return [series for series in prometheus.query(query) if not math.isnan(float(series["value"][1]))]


def wait_for_data(prometheus: Prometheus, queries: dict[str, str]) -> None:
    missing = dict(queries)

    def none_is_missing() -> bool:
        for name, query in queries.items():
            if name in missing and found(prometheus, query):
                del missing[name]
        assert not missing, missing
        return True

    wait_until(none_is_missing, "every query to find data", 20)


def test_every_alert_finds_its_data(watched: Watched) -> None:
    """With `bool` a comparison shows 0 or 1 where without it there would be nothing, or an alert.

    So does `and` instead of `unless`, if both sides are there and have the same labels.
    """
    expressions = {name: rule["expr"] for name, rule in alerts().items()}
    queries = {name: re.sub(r"\bunless\b", "and", BOOL.sub(r" \1 bool ", text)) for name, text in expressions.items()}
    selectors = ("".join(selector) for text in expressions.values() for selector in SELECTOR.findall(text))
    wait_for_data(watched.prometheus, queries | {selector: selector for selector in selectors})


def test_every_panel_finds_its_data(watched: Watched) -> None:
    queries = {f"{panel['title']}: {target['legendFormat']}": in_grafana(target["expr"]) for panel, target in QUERIES}
    wait_for_data(watched.prometheus, queries)


def test_the_picture_has_a_line_in_every_panel(watched: Watched, tmp_path: Path) -> None:
    file = tmp_path / "dashboard.svg"
    done = run(sys.executable, PICTURE, watched.prometheus.url, file, "--minutes", "1")
    assert done.returncode == 0, done.stderr
    lines = drawn(file)
    assert [panel["title"] for panel in PANELS if not lines.get(panel["title"])] == []


def test_a_slow_image_leads_to_its_trace(watched: Watched) -> None:
    """Prometheus keeps the traces that are examples of a bucket, and the collector has them."""

    def known() -> set[str]:
        now = time.time()
        series = watched.prometheus.get("query_exemplars", query=EXEMPLARS, start=f"{now - 60}", end=f"{now}")
        shown = {example["labels"]["trace_id"] for each in series for example in each["exemplars"]}
        return shown & {span.trace for span in list(watched.collector.spans)}

    wait_until(known, "an example that the collector has")


def test_figures(watched: Watched) -> None:
    """Some of which it is known what they must be."""
    expected = {
        'sum(classifleet_workers{pool="default"})': 1,
        'sum(classifleet_models{state="ready"})': 2,
        'classifleet_queue_objective_seconds{queue="classify.default.interactive"}': 60,
        "max(classifleet_ledger_memory_max_bytes)": 512 << 20,
        "min(classifleet_dependency_up)": 1,
    }
    seen = {query: [float(series["value"][1]) for series in found(watched.prometheus, query)] for query in expected}
    assert seen == {query: [value] for query, value in expected.items()}
    assert found(watched.prometheus, 'classifleet_dead_letters_total{code="model_failed"} > 0')


def in_grafana(query: str) -> str:
    for name, value in (("namespace", ".*"), ("queue", ".*"), ("__rate_interval", "5s")):
        query = query.replace(f"${name}", value)
    return query


def test_prometheus_evaluates_every_rule(watched: Watched) -> None:
    def rules() -> list[dict[str, Any]]:
        groups = watched.prometheus.get("rules")["groups"]
        listed = [rule for group in groups for rule in group["rules"]]
        return listed if all(rule["health"] != "unknown" for rule in listed) else []

    listed = wait_until(rules, "every rule to be evaluated")
    assert {rule["name"] for rule in listed} == set(alerts())
    assert {rule["health"] for rule in listed} == {"ok"}
    assert [rule["name"] for rule in listed if rule["state"] == "firing"] == []


@pytest.mark.parametrize("who", ["worker", "exporter"])
def test_promtool_finds_no_fault_in_the_metrics(watched: Watched, who: str) -> None:
    process: Worker = getattr(watched, who)
    done = promtool("check", "metrics", given=process.metrics())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_openmetrics_are_served_to_who_asks(watched: Watched) -> None:
    request = urllib.request.Request(
        f"{watched.worker.http_url}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert answer.read().endswith(b"# EOF\n")
