"""A real Prometheus scrapes a real worker and a real exporter under load; alerts and panels find their data there."""

from __future__ import annotations

import itertools
import math
import re
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from classifleet.producer import Fleet
from tests.observability.test_alerts import RULES, SELECTOR, alerts
from tests.observability.test_dashboard import QUERIES
from tests.support import RedisServer, wait_until
from tests.support.fleet import Worker, start_worker
from tests.support.prometheus import Prometheus, promtool, start_prometheus
from tests.support.rigged_worker import YELLOW
from tests.support.tiny import MODEL, add_tiny

EXPORTER = (sys.executable, "-m", "classifleet.producer.cli", "exporter")
RIGGED = (sys.executable, "-m", "tests.support.rigged_worker", "worker")
KUBE = "there is no kube-state-metrics"
# What finds nothing in a fleet on one machine, and why.
EMPTY_ALERTS = {
    "ClassifleetAtMaximum": KUBE,
    "ClassifleetWorkerCannotStart": KUBE,
    "ClassifleetExporterAway": "there is an exporter",
}
EMPTY_QUERIES = {
    "kube_horizontalpodautoscaler_status_desired_replicas": KUBE,
    "kube_horizontalpodautoscaler_spec_max_replicas": KUBE,
    "classifleet_padded_images_total": "this backend wants no padding",
    "classifleet_dropped_images_total": "no image of this load has a deadline",
    "classifleet_cache_total": "no model of this load has a content cache",
    "classifleet_waiting_chunks": "no host of this load is slow",
}


@dataclass(frozen=True, slots=True)
class Watched:
    prometheus: Prometheus
    worker: Worker
    exporter: Worker


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (64, 64), (200, 10, 10)).save(folder / "red.png")
    Image.new("RGB", (64, 64), YELLOW).save(folder / "yellow.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


@contextmanager
def loaded(url: str, images: Path, web: str) -> Iterator[None]:
    """Both lanes, with and without a sink; some images fail, for reasons of theirs and of ours."""
    names = ["red", "red", "red", "red", "red", "red", "broken", "missing", "yellow"]
    refs = [*(f"file://{images}/{name}.png" for name in names), f"{web}/coffee.jpg"]
    ended = threading.Event()

    def submit() -> None:
        with Fleet(url) as fleet:
            for turn in itertools.count():
                items = [(str(index), ref) for index, ref in enumerate(refs * 10)]
                job = fleet.submit_many(items, models=MODEL, sink=f"file://{images}/sink" if turn % 2 else None)
                for _ in range(10):
                    fleet.submit(refs[0], models=MODEL)
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


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, images: Path, web: str) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    given = {
        **{"MODEL_REPOSITORY": str(add_tiny(folder / "models")), "FILE_ROOTS": str(images)},
        **{"DRAIN_SECONDS": "0", "SINK_ALLOW": f"file://{images}", "HTTP_ALLOW": web.removeprefix("http://")},
    }
    with pytest.MonkeyPatch.context() as patch, RedisServer.start(folder / "redis", "--maxmemory", "512mb") as redis:
        patch.setenv("RIGGED_SECONDS", "0.01")
        url = f"{redis.url}/0"
        with (
            start_worker(url, folder / "worker.log", settings=given, command=RIGGED, wait=False) as worker,
            start_worker(url, folder / "exporter.log", settings={}, command=EXPORTER, wait=False) as exporter,
        ):
            targets = {"workers": worker.http_url, "exporter": exporter.http_url}
            worker.wait_ready()
            exporter.wait_ready()
            with (
                loaded(url, images, web),
                start_prometheus(
                    folder / "prometheus",
                    {job: target.removeprefix("http://") for job, target in targets.items()},
                    RULES,
                ) as prometheus,
            ):
                yield Watched(prometheus, worker, exporter)


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
    """With `bool` a comparison shows 0 or 1 where without it there would be nothing, or an alert."""
    expressions = {name: rule["expr"] for name, rule in alerts().items()}
    queries = {
        name: re.sub(r"\s(>=|>|<|==)\s", r" \1 bool ", expression)
        for name, expression in expressions.items()
        if name not in EMPTY_ALERTS
    }
    for name in EMPTY_ALERTS:
        selectors = SELECTOR.findall(expressions[name])
        queries |= {f"{name}: {metric}": metric + rest for metric, rest in selectors if not metric.startswith("kube_")}
    wait_for_data(watched.prometheus, queries)


def test_every_panel_finds_its_data(watched: Watched) -> None:
    queries = {
        f"{panel['title']}: {target['legendFormat']}": in_grafana(target["expr"])
        for panel, target in QUERIES
        if not any(metric in target["expr"] for metric in EMPTY_QUERIES)
    }
    wait_for_data(watched.prometheus, queries)


def test_what_is_said_to_find_nothing_does(watched: Watched) -> None:
    for metric in EMPTY_QUERIES:
        assert found(watched.prometheus, metric) == []


def test_figures(watched: Watched) -> None:
    """Some of which it is known what they must be."""
    expected = {
        'sum(classifleet_workers{pool="default"})': 1,
        'sum(classifleet_models{state="ready"})': 1,
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
