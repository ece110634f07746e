"""The peers by name, each set up for two cores as its manual says: batches of 8, a process a core, one thread each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.over_celery import CeleryPeer
from benchmarks.peers.over_http import HttpPeer

SERVED: Final = "benchmarks.peers.served"
Peer = CeleryPeer | HttpPeer


def _body(path: Path) -> dict[str, Any]:
    return {"path": str(path)}


def _label(answer: Any) -> int:
    return int(answer["label"])


def _prefork(model: Path) -> Peer:
    return CeleryPeer("Celery, prefork 2", model, f"{SERVED}.celery_app", ["--pool", "prefork", "--concurrency", "2"])


def _threads(model: Path) -> Peer:
    return CeleryPeer("Celery, threads 2", model, f"{SERVED}.celery_app", ["--pool", "threads", "--concurrency", "2"])


def _batches(model: Path) -> Peer:
    options = ["--pool", "prefork", "--concurrency", "2"]
    return CeleryPeer("celery-batches", model, f"{SERVED}.celery_batches_app", options, "celery-batches")


def _mosec(model: Path) -> Peer:
    def command(port: int) -> list[str]:
        return ["-m", f"{SERVED}.mosec_server", "--address", "127.0.0.1", "--port", str(port), "--timeout", "600000"]

    return HttpPeer("mosec", "mosec", model, command, "/inference", _body, _label)


def _litserve(model: Path) -> Peer:
    def command(port: int) -> list[str]:
        return ["-m", f"{SERVED}.litserve_server", str(port)]

    return HttpPeer("LitServe", "litserve", model, command, "/predict", _body, _label)


def _ray(model: Path) -> Peer:
    def command(port: int) -> list[str]:
        return ["-m", f"{SERVED}.ray_server", str(port)]

    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    return HttpPeer("Ray Serve", "ray", model, command, "/", _body, _label, settings)


def _bento(model: Path) -> Peer:
    def command(port: int) -> list[str]:
        service = f"{SERVED}.bento_service:Classify"
        return ["-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(port)]

    def body(path: Path) -> dict[str, Any]:
        return {"paths": [str(path)]}

    def label(answer: Any) -> int:
        return int(answer[0])

    settings = {"BENTOML_DO_NOT_TRACK": "True"}
    return HttpPeer("BentoML", "bentoml", model, command, "/classify", body, label, settings)


PEERS: Final[dict[str, Callable[[Path], Peer]]] = {
    "celery-prefork": _prefork,
    "celery-threads": _threads,
    "celery-batches": _batches,
    "mosec": _mosec,
    "litserve": _litserve,
    "ray": _ray,
    "bentoml": _bento,
}
