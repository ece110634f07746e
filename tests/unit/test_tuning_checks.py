"""What is said of tuning: by `classifleet doctor`, and by `classifleet models show`."""

from __future__ import annotations

import os
from dataclasses import asdict

import pytest

from classifleet.config import Settings
from classifleet.config.checks import State
from classifleet.worker import checks, cores
from classifleet.worker.models import Repository
from tests.models_support import description_fields

pytest.importorskip("torch")
from classifleet.worker.models import ModelDescription, _inductor, _openvino, tuned, tuning_cache
from classifleet.worker.models._cli_tune import kept, line
from classifleet.worker.models.measuring import Speed
from classifleet.worker.models.parity import Parity
from classifleet.worker.models.tuning import Row, Split, Tuning

DESCRIPTION = ModelDescription.from_fields(description_fields(), where="test")
PLAIN = Row("torchscript", "fp32", "slower", Speed(100.0, 1, 0.01))
FAST = Row("openvino/bf16", "bf16", "chosen", Speed(420.0, 8, 0.02), Parity(205, 133, 132, 0.012, 0.1))
TUNING = Tuning((PLAIN, FAST), PLAIN.speed or FAST.speed, split=Split(1, 2, 200.0))


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        (TUNING, ["openvino/bf16", "420 images/s", "batches of 8", "4.2x", "99.2% of 133", "1 threads decode, 2 run"]),
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
    assert tuned.compared(TUNING) == ("4.20", "0.9925")
    assert tuned.compared(None) == ("", "")


def test_a_kept_file_that_cannot_be_read_hides_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_TUNING_CACHE", str(tmp_path))
    prefix = f"{DESCRIPTION.name}-{DESCRIPTION.version}"
    tuning_cache.write(tmp_path / f"{prefix}-a.json", TUNING)
    (tmp_path / f"{prefix}-b.json").write_text("{}")
    found = kept(Repository(tmp_path / "models"), DESCRIPTION)
    assert found[0].startswith("openvino/bf16")
    assert "not readable" in found[1]


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
    monkeypatch.setattr(_openvino, "installed", lambda: installed)
    monkeypatch.setattr(_inductor, "missing", lambda device: missing)
    found = list(checks.check_backends(Settings.load(device="cpu")))
    assert [finding.state for finding in found] == states
    for finding, words in zip(found, said, strict=True):
        assert words in finding.what
        assert "times" in finding.what


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_asleep_unless_the_environment_says_otherwise(before, after, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", str(before))  # also so that what is set below is taken away again
    if before is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    cores.wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == after
