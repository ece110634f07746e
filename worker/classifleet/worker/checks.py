"""The worker's checks for `classifleet doctor`: versions, models, device.

Nothing is imported here that a machine without the extra [worker] lacks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from classifleet.config import ClassifleetError, Settings
from classifleet.config.checks import Check, Finding, State, check_requirements

if TYPE_CHECKING:
    from classifleet.worker.models.repository import Repository

OPENVINO_BRINGS: Final = "2.9-5.7 times the file as it came, 2.2 times torch's best"
INDUCTOR_BRINGS: Final = "1.4-1.6 times torch's best, less than OpenVINO"
"""Both with EfficientNet-Lite0 on a Xeon with AMX; see docs/tuning.md."""
BUILD_REMEDY: Final = "run `classifleet models build`, or `classifleet models add`"


def checks() -> list[Check]:
    """What a worker needs; of a machine without torch it is only said that it can be none."""
    if importlib.util.find_spec("torch") is None:
        return [check_extra]
    return [check_worker_versions, check_models, check_device, check_backends]


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
            yield Finding("models", State.OK, f"{full_name} is whole{_runs_as(repository, full_name)}")


def _runs_as(repository: Repository, full_name: str) -> str:
    """How tuning found that it runs best, of which a folder may hold some outcomes: for other devices and settings."""
    from classifleet.worker.models._cli_tune import kept

    found = kept(repository, repository.describe(full_name))
    return "; " + "; ".join(found) if found else "; not tuned yet, which the first worker does"


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


def check_backends(settings: Settings) -> Iterator[Finding]:
    """What would run models faster here, and is not there?"""
    from classifleet.worker.loading import device_name
    from classifleet.worker.models import _inductor, _openvino, golden_inputs

    try:
        device = device_name(settings.device)
    except ClassifleetError:
        return  # `check_device` says it
    if device == "cpu" and not _openvino.installed():
        what = f"OpenVINO is not installed; measured on CPUs with it: {OPENVINO_BRINGS}"
        yield Finding("device", State.WARNING, what, "pip install 'classifleet[openvino]'")
    if not golden_inputs.shipped():
        what = "there are no photos to compare answers on: a model stays in fp32 unless it brings five of its own"
        yield Finding("device", State.WARNING, what, "pip install scikit-image, or `classifleet models tune --photos`")
    if reason := _inductor.missing(device):
        what = f"AOTInductor cannot compile: {reason}; measured with it: {INDUCTOR_BRINGS}"
        yield Finding("device", State.OK if _openvino.installed() else State.WARNING, what)
