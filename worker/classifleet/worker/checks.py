"""The worker's checks for `classifleet doctor`: models, device, versions."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from classifleet.config import ClassifleetError, Settings
from classifleet.config.checks import Check, Finding, State


def checks() -> list[Check]:
    """The checks of a machine that has the extra [worker]; empty elsewhere."""
    try:
        version("torch")
    except PackageNotFoundError:
        return []
    return [check_worker_versions, check_models, check_device]


def check_worker_versions(_: Settings) -> Iterator[Finding]:
    """Versions of what the worker runs on."""
    names = ("torch", "torchvision", "pillow", "boto3", "aiohttp")
    yield Finding("worker", State.OK, ", ".join(f"{name} {version(name)}" for name in names))


def check_models(settings: Settings) -> Iterator[Finding]:
    """Are the models there and whole?"""
    from classifleet.worker.models import open_repository

    repository = open_repository(settings.model_repository, settings)
    wanted = settings.models or repository.list()
    if not wanted:
        yield Finding(
            "models",
            State.FAILED,
            f"{settings.model_repository} holds no model",
            "run `classifleet models build imagenet`, or `classifleet models add`",
        )
    for name in wanted:
        try:
            full_name = repository.resolve(name)
            repository.describe(full_name)
            repository.model_file(full_name)
        except ClassifleetError as error:
            yield Finding("models", State.FAILED, str(error), "correct CLASSIFLEET_MODELS, or add the model again")
        else:
            yield Finding("models", State.OK, f"{full_name} is whole")


def check_device(settings: Settings) -> Iterator[Finding]:
    """Is the device there?"""
    from classifleet.worker.cores import usable_cores
    from classifleet.worker.runtime import device_name

    try:
        device = device_name(settings.device)
    except ClassifleetError as error:
        yield Finding("device", State.FAILED, str(error))
        return
    yield Finding("device", State.OK, f"{device}, {usable_cores()} CPU cores")
