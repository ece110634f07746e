"""What is said of tuning: by `classifleet doctor`, and by `classifleet models show`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import pytest

from classifleet.config import Settings
from classifleet.config.checks import State
from classifleet.worker import checks, cores
from classifleet.worker.models import Repository
from tests.models_support import description_fields

pytest.importorskip("torch")
from classifleet.worker.models import ModelDescription, _inductor, _openvino, golden_inputs, tuned, tuning_cache
from classifleet.worker.models._cli_tune import kept, line
from classifleet.worker.models.measuring import Speed
from classifleet.worker.models.parity import Parity
from classifleet.worker.models.tuning import Row, Split, Tuning

DESCRIPTION = ModelDescription.from_fields(description_fields(), where="test")
PLAIN = Row("torchscript", "fp32", "slower", Speed(100.0, 1, 0.01, 1))
FAST = Row("openvino/bf16", "bf16", "chosen", Speed(420.0, 8, 0.02, 8), Parity(205, 133, 132, 0.012, 0.1))
TUNING = Tuning((PLAIN, FAST), PLAIN.speed or FAST.speed, split=Split(1, 2, 8, 200.0))


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        (TUNING, ["openvino/bf16", "420 images/s", "batches of 8", "4.2x", "1 threads decode, 2 run"]),
        (TUNING, ["equal answers to 99.2% of 133 decided of 205"]),
        (Tuning((PLAIN, FAST), PLAIN.speed, busy="load"), ["openvino/bf16", "the machine was busy"]),
        (Tuning((Row("torchscript", "fp32", "chosen", PLAIN.speed),), PLAIN.speed), ["torchscript:", "1.0x plain"]),
    ],
)
def test_an_outcome_is_one_line(tuning, said):
    found = line(asdict(tuning))
    assert all(part in found for part in said), found
    assert "\n" not in found


def test_an_outcome_survives_its_file(tmp_path):
    tuning_cache.write(tmp_path / "t.json", TUNING)
    assert tuning_cache.read(tmp_path / "t.json") == TUNING
    assert tuned.summary(TUNING)["pictures"] == 205
    assert tuned.compared(TUNING) == ("4.20", "0.9925")
    assert tuned.compared(None) == ("", "")


def test_a_kept_file_that_cannot_be_read_hides_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_TUNING_CACHE", str(tmp_path))
    prefix = f"{DESCRIPTION.name}-{DESCRIPTION.version}"
    tuning_cache.write(tmp_path / f"{prefix}-{'a' * 16}.json", TUNING)
    (tmp_path / f"{prefix}-{'b' * 16}.json").write_text("{}")
    (tmp_path / f"{prefix}-1-{'c' * 16}.json").write_text("{}")  # of a model that is named like this version
    found = kept(Repository(tmp_path / "models"), DESCRIPTION)
    assert len(found) == 2
    assert found[0].startswith("openvino/bf16")
    assert "not readable" in found[1]


def cache_name(device: str = "cpu", asked: str = "auto", **changes: object) -> str:
    described = ModelDescription.from_fields(description_fields(**changes), where="test")
    return tuning_cache.cache_file(Path(), described, device, {"precision": asked}).name


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": "1" * 64},
        {"preprocess__mean": [1, 0, 0]},
        {"preprocess__std": [1, 2, 1]},
        {"preprocess__scale": 0.5},
        {"input__layout": "NHWC"},
        {"input__color": "BGR"},
        {"output__activation": "sigmoid"},
        {"output__activation": "sigmoid", "output__kind": "multi"},
        {"output__threshold": 0.4},
        {"batch": {"max": 16}},
        {"asked": "fp32"},
    ],
)
def test_a_version_that_comes_again_with_other_numbers_is_tuned_again(changes):
    assert cache_name(**changes) != cache_name()
    assert cache_name(**changes) == cache_name(**changes)
    assert cache_name(summary="says more") == cache_name()


def test_another_device_and_another_version_are_other_outcomes(monkeypatch):
    first = cache_name()
    monkeypatch.setattr(tuning_cache, "version", lambda package: f"{package} 9")
    second = cache_name()
    monkeypatch.setattr(tuning_cache, "device_identity", lambda device: f"another {device}")
    assert len({first, second, cache_name()}) == 3
    assert tuning_cache.CACHE_VERSION == 3, "raised with what the file holds"


@pytest.mark.parametrize(
    ("installed", "missing", "said", "states"),
    [
        (True, "", [], []),
        (False, "", ["OpenVINO is not installed"], [State.WARNING]),
        (True, "no C++ compiler", ["AOTInductor cannot compile: no C++ compiler"], [State.OK]),
        (False, "no C++ compiler", ["OpenVINO", "AOTInductor"], [State.WARNING, State.WARNING]),
    ],
)
def test_doctor_says_what_a_missing_backend_would_bring(installed, missing, said, states, monkeypatch):
    pytest.importorskip("skimage")
    monkeypatch.setattr(_openvino, "installed", lambda: installed)
    monkeypatch.setattr(_inductor, "missing", lambda device: missing)
    found = list(checks.check_backends(Settings.load(device="cpu")))
    assert [finding.state for finding in found] == states
    for finding, words in zip(found, said, strict=True):
        assert words in finding.what
        assert "times" in finding.what


def test_doctor_says_that_models_stay_in_fp32_without_photos(monkeypatch):
    monkeypatch.setattr(golden_inputs, "shipped", list)
    found = [each for each in checks.check_backends(Settings.load(device="cpu")) if "photos" in each.what]
    assert [each.state for each in found] == [State.WARNING]
    assert "stays in fp32" in found[0].what


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_asleep_unless_the_environment_says_otherwise(before, after, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", str(before))  # also so that what is set below is taken away again
    if before is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    cores.wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == after
