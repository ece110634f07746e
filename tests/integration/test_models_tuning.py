"""Tuning of real modules: what is fast and right is chosen, what lies is refused, and the next start is quick."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import structlog
from PIL import Image
from typer.testing import CliRunner

from classifleet.config import ModelError, Settings
from classifleet.worker.models import ModelDescription, Repository, load_backend
from classifleet.worker.models.importers import Source, install
from tests.models_support import PHOTOS, encode

torch = pytest.importorskip("torch")
pytest.importorskip("skimage")
from classifleet.worker.models import _inductor, tuned, tuning_cache, variants  # noqa: E402 - needs torch
from classifleet.worker.models import golden_inputs as golden_inputs_module  # noqa: E402
from classifleet.worker.models._packages import Packages  # noqa: E402
from classifleet.worker.models.cli import app  # noqa: E402
from classifleet.worker.models.golden_inputs import MIN_PHOTOS, GoldenInputs, golden_inputs, noise  # noqa: E402
from classifleet.worker.models.measuring import Speed  # noqa: E402
from classifleet.worker.models.tuning import Row, Tuning  # noqa: E402

SIZE = 64


class Classifier(torch.nn.Module):
    """Three classes by colour, through a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = torch.nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.head = torch.nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 8 * self.head(torch.relu(self.features(x)).mean((2, 3)))


class Liar(Classifier):
    """Answers something else in reduced precision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = 8 * self.head(torch.relu(self.features(x)).mean((2, 3)))
        if scores.dtype != torch.float32:
            scores = scores.roll(1, 1)
        return scores


class Picky(Classifier):
    """Says itself that it takes nothing else; TorchScript has an error of its own for that."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float32, "wants float32"
        return 8 * self.head(torch.relu(self.features(x)).mean((2, 3)))


def add(folder: Path, name: str, module: torch.nn.Module) -> Repository:
    def write(_: object, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(module.eval()), str(path))

    fields = {
        "name": name,
        "version": "1",
        "input": {"size": [SIZE, SIZE]},
        "preprocess": {
            **{"resize": "stretch", "resize_size": [SIZE, SIZE], "interpolation": "bilinear"},
            **{"scale": 1 / 255, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        },
        "output": {"activation": "softmax", "num_classes": 3},
        "labels": ["a", "b", "c"],
        "license": "Apache-2.0",
        "source": "a test",
    }
    install(Repository(folder), Source({"schema_version": 1, "format": "torchscript"}, write), fields)
    return Repository(folder)


_made: list[GoldenInputs] = []


def _inputs(description: ModelDescription, folder: Path, photos: Sequence[Path]) -> GoldenInputs:
    """All models here take the same pictures: they are made once."""
    if not _made:
        _made.append(golden_inputs(description, folder, photos))
    return _made[0]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("MEASURE_SECONDS", "TURN_SECONDS"):
        monkeypatch.setattr(f"classifleet.worker.models.measuring.{name}", 0.02)
    monkeypatch.setattr("classifleet.worker.models._split.RUN_SECONDS", 0.05)
    monkeypatch.setattr(tuned, "golden_inputs", _inputs)
    monkeypatch.setattr(tuned, "usable_cores", lambda: 1)
    some = [variants.BY_NAME[name] for name in ("torchscript", "torchscript/frozen", "torchscript/bf16")]
    monkeypatch.setattr("classifleet.worker.models.tuning.VARIANTS", some)
    monkeypatch.setattr("classifleet.worker.models.tuning.busy", lambda *_: "")  # whatever else runs beside the tests
    # one test below compiles; in the others it would only take time
    monkeypatch.setattr(_inductor, "missing", lambda device: "not in this test")
    return Settings.load(tuning_cache=str(tmp_path / "tuning"), tune_seconds=120)


def rows(tuning) -> dict[str, object]:
    return {row.variant: row for row in tuning.rows}


def test_a_model_that_lies_in_bf16_is_refused_there(tmp_path, settings, monkeypatch):
    """Whatever the clock says, the lie counts as the fastest way to run it."""
    repository = add(tmp_path / "models", "liar", Liar())
    tempting = (variants.PLAIN, variants.BY_NAME["torchscript/bf16"])
    monkeypatch.setattr("classifleet.worker.models.tuning.VARIANTS", tempting)
    monkeypatch.setattr("classifleet.worker.models.tuning._Contest._faster", lambda *_: True)
    found = rows(tuned.tune_model(repository, "liar@1", settings, "cpu"))
    assert found["torchscript"].status == "chosen"
    assert found["torchscript/bf16"].status == "refused"
    assert "the answer is equal on" in found["torchscript/bf16"].reason


def test_a_model_that_raises_in_bf16_serves_in_fp32(tmp_path, settings):
    repository = add(tmp_path / "models", "picky", Picky())
    found = rows(tuned.tune_model(repository, "picky@1", settings, "cpu"))
    assert found["torchscript/bf16"].status == "failed"
    assert found["torchscript/bf16"].reason.endswith("AssertionError: wants float32")


def test_what_has_killed_the_process_is_not_tried_and_not_forgotten(tmp_path, settings):
    repository = add(tmp_path / "models", "honest", Classifier())
    outcome = tuned.cache_file(repository, repository.describe("honest"), settings, "cpu")
    outcome.parent.mkdir()
    outcome.with_suffix(".trying").write_text("torchscript/bf16\ntorchscript/frozen\ntorchscript/bf16\n")
    found = rows(tuned.tune_model(repository, "honest@1", settings, "cpu"))
    assert (found["torchscript/bf16"].status, found["torchscript/bf16"].reason) == ("failed", "killed the process")
    assert found["torchscript/frozen"].speed is not None
    assert outcome.with_suffix(".trying").read_text() == "torchscript/bf16\n" * 2


def test_what_cannot_be_loaded_today_is_looked_for_anew(tmp_path, settings):
    """Its compiled package is gone, and here is no compiler."""
    repository = add(tmp_path / "models", "honest", Classifier())
    outcome = tuned.cache_file(repository, repository.describe("honest"), settings, "cpu")
    speed = Speed(100.0, 1, 0.01, 1)
    kept = Tuning((Row("inductor/fp32", "fp32", "chosen", speed),), speed, photos=9)
    tuning_cache.write(outcome, kept)
    untuned = Settings.load(tuning_cache=settings.tuning_cache, tune_seconds=0)
    loaded = tuned.load_tuned(repository, "honest@1", untuned, "cpu")
    assert (loaded.tuning, loaded.backend.name) == (None, "torchscript/channels_last")
    assert tuning_cache.read(outcome) == kept
    loaded = tuned.load_tuned(repository, "honest@1", settings, "cpu")
    assert loaded.backend.name == loaded.tuning.chosen.variant != "inductor/fp32"
    assert tuning_cache.read(outcome) == loaded.tuning


@pytest.mark.parametrize("tune_seconds", [0, 7])
def test_what_must_be_compiled_anew_takes_no_longer_than_tuning_may(tmp_path, settings, tune_seconds, monkeypatch):
    """A model that comes while others serve has no time at all."""
    repository = add(tmp_path / "models", "honest", Classifier())
    outcome = tuned.cache_file(repository, repository.describe("honest"), settings, "cpu")
    speed = Speed(100.0, 1, 0.01, 1)
    tuning_cache.write(outcome, Tuning((Row("inductor/fp32", "fp32", "chosen", speed),), speed, photos=9))
    allowed = []

    def compiling(*asked):
        allowed.append(asked[-1])
        raise ModelError("took too long")

    monkeypatch.setattr(_inductor, "missing", lambda device: "")
    monkeypatch.setattr(_inductor, "_compile", compiling)
    changed = Settings.load(tuning_cache=settings.tuning_cache, tune_seconds=tune_seconds)
    assert tuned.load_tuned(repository, "honest@1", changed, "cpu").backend.name != "inductor/fp32"
    assert allowed[0] == tune_seconds


def test_what_was_decided_without_photos_is_looked_for_again_when_there_are_some(tmp_path, settings, monkeypatch):
    repository = add(tmp_path / "models", "honest", Classifier())
    with monkeypatch.context() as blind:
        blind.setattr(golden_inputs_module, "shipped", list)
        blind.setattr(tuned, "golden_inputs", golden_inputs)
        without = [tuned.load_tuned(repository, "honest@1", settings, "cpu").tuning for _ in range(2)]
    assert without[0] == without[1]
    assert without[0].photos == 0
    assert rows(without[0])["torchscript/bf16"].status == "refused"
    found = [tuned.load_tuned(repository, "honest@1", settings, "cpu").tuning for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].photos >= MIN_PHOTOS
    assert rows(found[0])["torchscript/bf16"].status != "refused"


def test_the_command_prints_what_it_found(tmp_path, settings, monkeypatch):
    repository = add(tmp_path / "models", "honest", Classifier())
    monkeypatch.setenv("CLASSIFLEET_TUNING_CACHE", settings.tuning_cache)
    given = ["tune", "honest", "--device", "cpu", "--seconds", "60", "--repository", str(repository.path)]
    table = CliRunner().invoke(app, given, env={"COLUMNS": "200"}, catch_exceptions=False).output
    assert all(name in table for name in ("variant", "images/s", "pictures", "same answers", "torchscript/bf16"))
    assert "honest@1 runs as torchscript" in table
    printed = CliRunner().invoke(app, [*given, "--precision", "fp32", "--json"], catch_exceptions=False).output
    found = json.loads(printed)
    assert [row["variant"] for row in found["rows"]] == ["torchscript", "torchscript/frozen"]
    assert found["variant"] in ("torchscript", "torchscript/frozen")
    assert found["speedup"] > 0
    assert len(list(Path(settings.tuning_cache).glob("honest-1-*.json"))) == 2
    shown = CliRunner().invoke(app, ["show", "honest", "--json", "--repository", str(repository.path)]).output
    assert len(json.loads(shown)["tuned"]) == 2


def test_an_honest_model_runs_in_any_way_and_answers_the_same(tmp_path, settings):
    repository = add(tmp_path / "models", "honest", Classifier())
    description = repository.describe("honest")
    pixels = golden_inputs(description, repository.folder("honest")).pixels[:32]
    plain = load_backend(repository, "honest", device="cpu", variant="torchscript").run(pixels)
    for variant in variants.VARIANTS:
        if variants.available(variant, "cpu"):
            continue
        backend = load_backend(repository, "honest", device="cpu", variant=variant.name)
        assert backend.name == variant.name
        limit = 1e-4 if variant.precision == "fp32" else 0.05
        assert np.abs(backend.run(pixels) - plain).max() < limit, variant.name
        backend.close()


def test_what_was_found_is_kept_for_the_next_start(tmp_path, settings):
    repository = add(tmp_path / "models", "honest", Classifier())
    with structlog.testing.capture_logs() as lines:
        first = tuned.load_tuned(repository, "honest@1", settings, "cpu")
    [said] = [line for line in lines if line["event"] == "model tuned"]
    assert said.items() >= {"model": "honest@1", "device": "cpu", **tuned.summary(first.tuning)}.items()
    [kept] = (tmp_path / "tuning").iterdir()
    before = kept.stat().st_mtime_ns
    again = tuned.load_tuned(repository, "honest@1", settings, "cpu")
    assert again.tuning == first.tuning
    assert again.backend.name == first.backend.name
    assert kept.stat().st_mtime_ns == before
    fp32 = Settings.load(tuning_cache=settings.tuning_cache, tune_seconds=120, precision="fp32")
    assert tuned.load_tuned(repository, "honest@1", fp32, "cpu").tuning != first.tuning
    assert len(list((tmp_path / "tuning").iterdir())) == 2, "another precision is another question"


def test_what_was_found_on_a_busy_machine_is_looked_for_again_at_the_next_starts(tmp_path, settings, monkeypatch):
    repository = add(tmp_path / "models", "honest", Classifier())
    monkeypatch.setattr("classifleet.worker.models.tuning.busy", lambda *_: "others were at work")
    found = [tuned.load_tuned(repository, "honest@1", settings, "cpu").tuning for _ in range(4)]
    assert [tuning.tries for tuning in found] == [1, 2, tuned.MAX_TRIES, tuned.MAX_TRIES]
    assert found[3] == found[2], "it is not looked for at each start for ever"
    assert tuned.summary(found[3])["busy"] == "others were at work"
    path = tuned.cache_file(repository, repository.describe("honest"), settings, "cpu")
    path.unlink()
    tuned.load_tuned(repository, "honest@1", settings, "cpu")
    monkeypatch.setattr("classifleet.worker.models.tuning.busy", lambda *_: "")
    quiet = [tuned.load_tuned(repository, "honest@1", settings, "cpu").tuning for _ in range(2)]
    assert (quiet[0].busy, quiet[0].tries) == ("", 1)
    assert quiet[0] == quiet[1]


def test_what_the_operators_photos_have_shown_is_not_forgotten(tmp_path, settings, monkeypatch):
    repository = add(tmp_path / "models", "honest", Classifier())
    monkeypatch.setattr("classifleet.worker.models.tuning.busy", lambda *_: "others were at work")
    photo = tmp_path / "own.png"
    photo.write_bytes(encode(Image.new("RGB", (64, 64), "red"), "PNG"))
    ahead = tuned.tune_model(repository, "honest@1", settings, "cpu", photos=[photo])
    assert ahead.own_photos
    assert tuned.load_tuned(repository, "honest@1", settings, "cpu").tuning == ahead


def test_the_split_of_the_cores_is_kept_and_used(tmp_path, settings, monkeypatch):
    repository = add(tmp_path / "models", "honest", Classifier())
    monkeypatch.setattr(tuned, "usable_cores", lambda: 2)
    loaded = tuned.load_tuned(repository, "honest@1", settings, "cpu")
    split = loaded.tuning.split
    assert split in loaded.tuning.splits
    assert loaded.decode_threads == split.decode_threads >= 1
    assert loaded.max_batch == split.batch
    opened, real = [], variants.Ways.open

    def spying(ways, variant, *, threads=None, seconds=None):
        opened.append(threads)
        return real(ways, variant, threads=threads, seconds=seconds)

    monkeypatch.setattr(variants.Ways, "open", spying)
    assert tuned.load_tuned(repository, "honest@1", settings, "cpu").decode_threads == split.decode_threads
    assert opened == [split.forward_threads]


@pytest.mark.slow
def test_a_compiled_package_is_kept_checked_and_needs_no_compiler(tmp_path, monkeypatch):
    if reason := _inductor.missing("cpu"):
        pytest.skip(reason)
    repository = add(tmp_path / "models", "honest", Classifier())
    description, path = repository.describe("honest"), repository.model_file("honest@1")
    ways = variants.Ways(description, path, "cpu", Packages(tmp_path / "packages"))
    fp32 = variants.BY_NAME["inductor/fp32"]
    assert ways.seconds(fp32) > _inductor.BASE_SECONDS
    plain = load_backend(repository, "honest", device="cpu", variant="torchscript")
    compiled = ways.open(fp32)
    for size in (1, 3, 8):
        pixels = noise(description, size)
        assert np.abs(compiled.run(pixels) - plain.run(pixels)).max() < 1e-4
    compiled.close()
    [package] = (tmp_path / "packages").iterdir()

    monkeypatch.setattr(_inductor, "missing", lambda device: "no C++ compiler")
    assert ways.missing(fp32) == ""
    assert ways.seconds(fp32) == _inductor.LOAD_SECONDS
    again = ways.open(fp32, threads=1)
    assert np.abs(again.run(pixels) - plain.run(pixels)).max() < 1e-4

    content = bytearray(package.read_bytes())
    content[len(content) // 2] ^= 1
    package.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be compiled: no C"):
        ways.open(fp32)
    assert not package.exists(), "it is not even kept"
    assert ways.missing(fp32) == "no C++ compiler"


@pytest.mark.parametrize("content", ["", "{}", '{"rows": [{}], "plain": 1}', "\x00"])
def test_a_broken_file_is_tuned_again(tmp_path, settings, content):
    repository = add(tmp_path / "models", "honest", Classifier())
    path = tuned.cache_file(repository, repository.describe("honest"), settings, "cpu")
    path.parent.mkdir()
    path.write_text(content)
    assert tuned.load_tuned(repository, "honest@1", settings, "cpu").tuning is not None
    assert json.loads(path.read_text())["rows"]


def test_without_time_nothing_is_tuned_but_compared_on_photos(tmp_path, monkeypatch):
    repository = add(tmp_path / "models", "honest", Classifier())
    asked, real = [], variants.few_pictures
    monkeypatch.setattr(variants, "few_pictures", lambda *given: asked.append(real(*given)) or asked[0])
    loaded = tuned.load_tuned(repository, "honest@1", Settings.load(tune_seconds=0), "cpu")
    assert loaded.tuning is None
    assert loaded.backend.run(noise(repository.describe("honest"), 2)).shape == (2, 3)
    assert len(asked) == 1


def test_of_very_many_photos_some_are_used(tmp_path, monkeypatch):
    repository = add(tmp_path / "models", "honest", Classifier())
    monkeypatch.setattr(golden_inputs_module, "MAX_PHOTOS", 3)
    monkeypatch.setattr(golden_inputs_module, "MIN_PICTURES", 3)
    photos = [tmp_path / f"{level}.png" for level in range(7)]
    for level, path in enumerate(photos):
        Image.new("RGB", (8, 8), (level, 0, 0)).save(path)
    found = golden_inputs(repository.describe("honest"), repository.folder("honest"), photos)
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 3, 6]
    assert found.photos == 3


def test_openvino_reports_to_nobody(tmp_path):
    """Its telemetry package must not even be imported."""
    pytest.importorskip("openvino", reason="the extra [openvino] is not installed")
    repository = add(tmp_path / "models", "honest", Classifier())
    code = (
        "import sys; from classifleet.worker.models import Repository, load_backend\n"
        f"load_backend(Repository({str(repository.path)!r}), 'honest', device='cpu', variant='openvino/fp32')\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]"
    )
    import subprocess

    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos of the workplace are not here")
def test_the_photos_of_a_folder_are_used(tmp_path, settings):
    repository = add(tmp_path / "models", "honest", Classifier())
    photos = sorted(PHOTOS.iterdir())[:20]
    found = golden_inputs(repository.describe("honest"), repository.folder("honest"), photos)
    assert (found.photos, len(found.pixels), found.representative) == (20, 200, True)
