"""The worker's checks for `classifleet doctor`: versions, models, device.

Nothing is imported here that a machine without the extra [worker] lacks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Final

from classifleet.config import ClassifleetError, Settings
from classifleet.config.checks import Check, Finding, State, check_requirements

BUILD_REMEDY: Final = "run `classifleet models build`, or `classifleet models add`"


def checks() -> list[Check]:
    """What a worker needs; of a machine without torch it is only said that it can be none."""
    if importlib.util.find_spec("torch") is None:
        return [check_extra]
    return [check_worker_versions, check_models, check_device]


def check_extra(_: Settings) -> Iterator[Finding]:
    """Can this machine run a worker?"""
    yield Finding(
        "worker",
        State.WARNING,
        "the extra [worker] is not installed: this machine submits and does not classify",
        "pip install 'classifleet[worker]' to run a worker here",
    )


def check_worker_versions(_: Settings) -> Iterator[Finding]:
    """Are the libraries those that the worker was made for?"""
    yield from check_requirements("worker", extra="worker")


def check_models(settings: Settings) -> Iterator[Finding]:
    """Are the models there and whole?"""
    from classifleet.worker.models import open_repository

    repository = open_repository(settings.model_repository, settings)
    wanted = settings.models or repository.list()
    if not wanted:
        yield Finding("models", State.FAILED, f"{settings.model_repository} holds no model", BUILD_REMEDY)
    for name in wanted:
        try:
            full_name = repository.resolve(name)
            repository.model_file(full_name)
        except ClassifleetError as error:
            yield Finding("models", State.FAILED, str(error), f"correct CLASSIFLEET_MODELS, or {BUILD_REMEDY}")
        else:
            yield Finding("models", State.OK, f"{full_name} is whole")


def check_device(settings: Settings) -> Iterator[Finding]:
    """Is the device there?"""
    from classifleet.worker.cores import usable_cores
    from classifleet.worker.loading import device_name

    try:
        device = device_name(settings.device)
    except ClassifleetError as error:
        yield Finding("device", State.FAILED, str(error), "CLASSIFLEET_DEVICE=auto takes what there is")
        return
    yield Finding("device", State.OK, f"{device}, {usable_cores()} CPU cores")
