"""`classifleet worker`. Imports torch only when the worker starts."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from typing import Annotated

import typer

from classifleet.config import MissingExtra, Settings
from classifleet.config.setting_sources import ENV_PREFIX
from classifleet.worker.cores import wait_asleep
from classifleet.worker.stopping import end_while_loading


def worker(
    broker_url: Annotated[
        str | None, typer.Option(help="The fleet's broker [CLASSIFLEET_BROKER_URL].", show_default=False)
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", "--model", help="Models to load, by comma. Default: all.")
    ] = None,
    queues: Annotated[str | None, typer.Option(help="Pools to serve, by comma. Default: default.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port of /metrics, /livez and /readyz. Default: the first free from 9464 on.")
    ] = None,
) -> None:
    """Serve queues: load the models, then classify until SIGTERM or Ctrl-C.

    Every other setting comes from the environment or a file: `classifleet config show` lists them. The first signal
    lets it finish what is at work, the second has it hand that back.

    Exit codes: 0 it was told to end, 1 a defect, 2 it cannot start, 3 too much memory.

    **Examples**

    ```
    classifleet worker --broker-url redis://localhost:6379/0
    CLASSIFLEET_MODELS=imagenet,nsfw classifleet worker --http-port 9464
    ```
    """
    end_while_loading()
    wait_asleep()
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
    Settings.load()  # what is wrong with them is said before anything is imported
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra("worker", "a worker")
    try:
        from celery.exceptions import SecurityWarning

        from classifleet.worker.app import app
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "classifleet":
            raise  # a defect, and not a missing extra
        raise MissingExtra("worker", "a worker") from error
    # Of being root, with which pickled messages would be dangerous: ours are JSON, and nothing else is accepted.
    warnings.simplefilter("ignore", SecurityWarning)
    # Not through Celery's command line, which takes APP, BROKER_URL, LOADER and more from the environment.
    process = app.Worker(
        pool="threads",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    process.start()
    sys.exit(process.exitcode)
