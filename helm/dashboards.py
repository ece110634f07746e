"""Write the Grafana dashboard of a fleet, `classifleet/files/dashboards/classifleet.json`.

.venv/bin/python helm/dashboards.py            write it
.venv/bin/python helm/dashboards.py --check    fail if it is out of date

Rows are in the order in which one asks: is it late, does it keep up, where does the time go, are batches full, are
there workers enough, what fails. Nothing is shown by host: a fleet has too many. Several exporters show the same
figures, hence `max` before anything else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

TARGET: Final = Path(__file__).parent / "classifleet" / "files" / "dashboards" / "classifleet.json"
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS: Final = 24
HEIGHT: Final = 8
SCHEMA_VERSION: Final = 39  # Grafana 10.3 and newer
NS: Final = 'namespace=~"$namespace"'
QUEUE: Final = f'{NS}, queue=~"$queue"'
HPA: Final = f'{NS}, horizontalpodautoscaler=~".*classifleet.*"'
RATE: Final = "[$__rate_interval]"
IMAGES_PER_SECOND: Final = "suffix: images/s"
IMAGES: Final = "suffix: images"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: its queries by legend, the unit of all of them, and what it is for."""

    title: str
    unit: str
    queries: dict[str, str]
    why: str
    stacked: bool = False
    log: bool = False
    most: float | None = None


def by_queue(metric: str, matchers: str = QUEUE, labels: str = "namespace, queue") -> str:
    """An exporter's gauge, once for each queue, however many exporters there are."""
    return f"max by ({labels}) ({metric}{{{matchers}}})"


def sum_by_queue(metric: str, label: str) -> str:
    """The sum over queues of such a gauge, by a label beside the queue."""
    return f"sum by ({label}) ({by_queue(metric, labels=f'namespace, queue, {label}')})"


def rate(metric: str, by: str, matchers: str = NS) -> str:
    """A counter's growth a second."""
    return f"sum by ({by}) (rate({metric}{{{matchers}}}{RATE}))"


def quantile(share: float, metric: str, by: str, matchers: str = NS) -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'le, {by}', matchers)})"


def mean(metric: str, by: str, matchers: str = NS) -> str:
    """The mean of a histogram's values."""
    return f"{rate(f'{metric}_sum', by, matchers)} / {rate(f'{metric}_count', by, matchers)}"


LOADING: Final = f'{NS}, state=~"waiting|loading|warming"'
FAILED: Final = f'{QUEUE}, outcome!~"ok|partial"'

ROWS: Final[dict[str, Sequence[Panel]]] = {
    "Is it late?": (
        Panel(
            "Oldest image", "s", log=True,
            why="How long the oldest queued image has been waiting. Above its objective the queue is late.",
            queries={
                "{{queue}}": by_queue("classifleet_queue_oldest_age_seconds"),
                "objective of {{queue}}": by_queue("classifleet_queue_objective_seconds"),
            },
        ),
        Panel(
            "Time to drain", "s", log=True,
            why="How long the outstanding images take at the last minute's rate. Infinite if nothing is done.",
            queries={
                "{{queue}}": by_queue("classifleet_queue_drain_seconds"),
                "objective of {{queue}}": by_queue("classifleet_queue_objective_seconds"),
            },
        ),
        Panel(
            "Wait in the queue", "s", log=True,
            why="From submission until a worker begins.",
            queries={
                "median {{queue}}": quantile(0.5, "classifleet_queue_wait_seconds", "queue", QUEUE),
                "95 % {{queue}}": quantile(0.95, "classifleet_queue_wait_seconds", "queue", QUEUE),
            },
        ),
    ),
    "Is it keeping up?": (
        Panel(
            "Accepted and done", IMAGES_PER_SECOND,
            why="Over the last minute, from the ledger. If more is accepted than done, the backlog grows.",
            queries={"{{what}}": sum_by_queue("classifleet_queue_images_per_second", "what")},
        ),
        Panel(
            "Outstanding images", IMAGES, stacked=True,
            why="Accepted images without a record. Parked ones wait for a newer worker.",
            queries={"{{state}}": sum_by_queue("classifleet_outstanding_images", "state")},
        ),
        Panel(
            "Done, by queue", IMAGES_PER_SECOND, stacked=True,
            why="Images with a committed record, by the workers' own count.",
            queries={"{{queue}}": rate("classifleet_images_total", "queue", QUEUE)},
        ),
    ),
    "Where does the time go?": (
        Panel(
            "Stages, mean", "s", log=True,
            why="Of an image: fetch, decode, batch_wait, forward. Of a chunk: sink, commit. Stages overlap.",
            queries={"{{stage}}": mean("classifleet_stage_duration_seconds", "stage")},
        ),
        Panel(
            "Stages, 95 %", "s", log=True,
            why="The slow ones.",
            queries={"{{stage}}": quantile(0.95, "classifleet_stage_duration_seconds", "stage")},
        ),
        Panel(
            "Fetches at work", "short",
            why="Slow ones have taken longer than a second. Connections include idle ones.",
            queries={
                "{{lane}}": f"sum by (lane) (classifleet_fetch_slots{{{NS}}})",
                "connections": f"sum (classifleet_fetch_connections{{{NS}}})",
            },
        ),
        Panel(
            "Bytes fetched and not decoded", "bytes",
            why="At its limit (fetch_max_total_bytes) decoding is the narrow place.",
            queries={"bytes": f"sum (classifleet_fetched_bytes{{{NS}}})"},
        ),
        Panel(
            "Trouble with hosts", "ops",
            why="Fetches that waited for their host's turn, were repeated, refused or cut.",
            queries={
                "waits for a host": f"sum (rate(classifleet_fetch_host_waits_total{{{NS}}}{RATE}))",
                "requests repeated": f"sum (rate(classifleet_fetch_retries_total{{{NS}}}{RATE}))",
                "refused, host left alone": f"sum (rate(classifleet_fetch_circuit_refusals_total{{{NS}}}{RATE}))",
                "slow ones cut": f"sum (rate(classifleet_fetch_evictions_total{{{NS}}}{RATE}))",
            },
        ),
        Panel(
            "Hosts left alone", "short",
            why="Hosts that kept failing and have a rest, summed over workers.",
            queries={"hosts": f"sum (classifleet_fetch_circuits_open{{{NS}}})"},
        ),
    ),
    "Batch efficiency": (
        Panel(
            "Batch size", IMAGES,
            why="Mean of a forward pass, against the most that may be. Small batches are right when nothing waits.",
            queries={
                "{{model}}": mean("classifleet_batch_size", "model"),
                "most of {{model}}": f"max by (model) (classifleet_max_batch_images{{{NS}}})",
            },
        ),
        Panel(
            "Batches by reason", "ops", stacked=True,
            why="Why they had their size. Bisected ones have an image that fails.",
            queries={"{{reason}}": rate("classifleet_batches_total", "reason")},
        ),
        Panel(
            "Device busy", "percentunit", stacked=True, most=1,
            why="Share of a worker's time in which its device runs a model, on average.",
            queries={
                "{{model}}": f"{rate('classifleet_device_seconds_total', 'model')} "
                f'/ on () group_left count(classifleet_models{{{NS}, state="ready"}} > 0)',
            },
        ),
        Panel(
            "Images that were run for nothing, or not at all", IMAGES_PER_SECOND,
            why="Padding for backends that want few sizes; images that were late, or that nobody waits for any more.",
            queries={
                "padding {{model}}": rate("classifleet_padded_images_total", "model"),
                "{{reason}} {{model}}": rate("classifleet_dropped_images_total", "reason, model"),
            },
        ),
        Panel(
            "Content cache", IMAGES_PER_SECOND, stacked=True,
            why="Images of models with a content cache: only a miss is decoded and run.",
            queries={"{{outcome}}": rate("classifleet_cache_total", "outcome")},
        ),
    ),
    "Fleet size": (
        Panel(
            "Workers", "short",
            why="Workers that are there, and how many the autoscaler wants (from kube-state-metrics).",
            queries={
                "alive, {{pool}}": f"sum by (pool) (max by (namespace, pool) (classifleet_workers{{{NS}}}))",
                "loading": f"count(sum by (pod, instance) (classifleet_models{{{LOADING}}}) > 0) or vector(0)",
                "with a model that failed": f'count(classifleet_models{{{NS}, state="failed"}} > 0) or vector(0)',
                "wanted {{horizontalpodautoscaler}}": "max by (horizontalpodautoscaler) "
                f"(kube_horizontalpodautoscaler_status_desired_replicas{{{HPA}}})",
                "most {{horizontalpodautoscaler}}": "max by (horizontalpodautoscaler) "
                f"(kube_horizontalpodautoscaler_spec_max_replicas{{{HPA}}})",
            },
        ),
        Panel(
            "Images at work", IMAGES,
            why="Of chunks that workers hold.",
            queries={
                "at work": f"sum (classifleet_inflight_images{{{NS}}})",
                "chunks that wait for slow hosts, {{lane}}": f"sum by (lane) (classifleet_waiting_chunks{{{NS}}})",
            },
        ),
        Panel(
            "Loading a model", "s",
            why="Mean of the workers that are there, with warming: what a new one costs before its first image.",
            queries={
                "{{model}}": f"sum by (model) (classifleet_model_load_seconds_sum{{{NS}}}) "
                f"/ sum by (model) (classifleet_model_load_seconds_count{{{NS}}})",
            },
        ),
        Panel(
            "Models", "short",
            why="Workers by model, digest, backend and device. Two digests of one model are a rollout, or a mistake.",
            queries={
                "{{model}} {{digest}} {{backend}} {{device}}": "count by (model, digest, backend, device) "
                f"(classifleet_model_info{{{NS}}})",
            },
        ),
    ),
    "Errors": (
        Panel(
            "Failures by code", IMAGES_PER_SECOND, stacked=True,
            why="docs/errors.md has the meaning of each code.",
            queries={"{{outcome}}": rate("classifleet_images_total", "outcome", FAILED)},
        ),
        Panel(
            "Share of images that fail", "percentunit", most=1,
            why="Of the images that were done.",
            queries={
                "{{queue}}": f"{rate('classifleet_images_total', 'queue', FAILED)} "
                f"/ {rate('classifleet_images_total', 'queue', QUEUE)}",
            },
        ),
        Panel(
            "Dead letters", IMAGES,
            why="Images that failed for a reason of ours: classifleet dead-letters list.",
            queries={
                "kept": f"max (classifleet_dead_letters_kept{{{NS}}})",
                "new in an hour, {{code}}": f"sum by (code) (increase(classifleet_dead_letters_total{{{NS}}}[1h]))",
            },
        ),
        Panel(
            "Work done again", "suffix: chunks/s",
            why="Published again: a worker fell silent, or the broker lost the message.",
            queries={
                "published again": f"sum (rate(classifleet_redeliveries_total{{{NS}}}{RATE}))",
                "lost to another attempt": f"sum (rate(classifleet_duplicates_total{{{NS}}}{RATE}))",
                "handed back: {{reason}}": rate("classifleet_handed_back_total", "reason"),
            },
        ),
        Panel(
            "Dependencies", "bool_on_off", most=1,
            why="Off while any worker cannot reach it.",
            queries={"{{dependency}}": f"min by (dependency) (classifleet_dependency_up{{{NS}}})"},
        ),
        Panel(
            "Memory of the ledger's Redis", "bytes",
            why="Reserved for the records of accepted images. New images are refused at 80 % of maxmemory.",
            queries={
                "used": f"max (classifleet_ledger_memory_used_bytes{{{NS}}})",
                "used and reserved": f"max (classifleet_ledger_memory_used_bytes{{{NS}}} "
                f"+ classifleet_ledger_memory_reserved_bytes{{{NS}}})",
                "maxmemory": f"max (classifleet_ledger_memory_max_bytes{{{NS}}})",
            },
        ),
    ),
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The whole of it, as Grafana's model of a dashboard."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(_row(len(panels) + 1, title, y))
        y += 1
        x, width = 0, COLUMNS // (4 if len(row) == 4 else 3)
        for panel in row:
            if x + width > COLUMNS:
                x, y = 0, y + HEIGHT
            place = {"h": HEIGHT, "w": width, "x": x, "y": y}
            panels.append(_panel(len(panels) + 1, panel, place))
            x += width
        y += HEIGHT
    return {
        "uid": "classifleet",
        "title": "Classifleet",
        "description": "Is the fleet late, and why? Alerts and what to do: docs/runbooks.md.",
        "tags": ["classifleet"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "",
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}
    return [
        source,
        _variable("namespace", "label_values(classifleet_outstanding_images, namespace)"),
        _variable("queue", f"label_values(classifleet_outstanding_images{{{NS}}}, queue)"),
    ]


def _variable(name: str, query: str) -> dict[str, Any]:
    """Several values may be chosen; all of them also match where there is no such label."""
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "hide": 0,
    }


def _row(number: int, title: str, y: int) -> dict[str, Any]:
    place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    custom: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 30 if panel.stacked else 0, "showPoints": "never"}
    custom["stacking"] = {"mode": "normal" if panel.stacked else "none", "group": "A"}
    custom["scaleDistribution"] = {"type": "log", "log": 10} if panel.log else {"type": "linear"}
    defaults: dict[str, Any] = {"unit": panel.unit, "custom": custom}
    if not panel.log:
        defaults["min"] = 0
    if panel.most is not None:
        defaults["max"] = panel.most
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.why,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": query,
                "legendFormat": legend,
                "range": True,
                "editorMode": "code",
            }
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def main() -> None:
    """Write the dashboard, or compare it with `--check`."""
    if set(sys.argv[1:]) - {"--check"}:
        sys.exit(f"usage: {sys.argv[0]} [--check]")
    text = json.dumps(dashboard(), indent=2) + "\n"
    if TARGET.is_file() and TARGET.read_text() == text:
        return
    if "--check" in sys.argv:
        sys.exit(f"out of date: {TARGET}; run: {sys.executable} {Path(__file__)}")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(text)


if __name__ == "__main__":
    main()
