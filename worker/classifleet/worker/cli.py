"""`classifleet worker`. Imports torch only when the worker starts."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from classifleet.config import MissingExtra, Settings
from classifleet.config.settings import ENV_PREFIX

EXAMPLES = """
Examples:

  classifleet worker --broker-url redis://localhost:6379/0

  CLASSIFLEET_MODELS=imagenet,nsfw classifleet worker --http-port 9464
"""


def worker(
    broker_url: Annotated[str | None, typer.Option(help="Celery broker.", show_default=False)] = None,
    models: Annotated[
        str | None, typer.Option("--models", "--model", help="Models to load, by comma. Default: all.")
    ] = None,
    queues: Annotated[str | None, typer.Option(help="Pools to serve, by comma. Default: default.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Port of /metrics, /livez and /readyz.")] = None,
) -> None:
    """Serve queues: load the models, then classify until SIGTERM. Every other setting comes from the environment."""
    given = {
        "BROKER_URL": broker_url,
        "MODELS": models,
        "QUEUES": queues,
        "DEVICE": device,
        "HTTP_PORT": None if http_port is None else str(http_port),
    }
    for name, value in given.items():
        if value is not None:
            os.environ[ENV_PREFIX + name] = value
    settings = Settings.load()
    try:
        from classifleet.worker.app import app
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "classifleet":
            raise
        raise MissingExtra("worker", "a worker") from error
    app.worker_main(
        [
            "--quiet",
            "worker",
            "--pool=threads",
            f"--concurrency={settings.chunks_in_flight}",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
    )


worker.__doc__ = f"{worker.__doc__}\n{EXAMPLES}"
