"""`classifleet models`: what people type, and what they read when it goes wrong."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from classifleet.config.errors import ClassifleetError, InvalidRequest, ModelError
from classifleet.config.storage import S3Store
from classifleet.worker.models import Repository, load_backend, open_repository
from classifleet.worker.models.cli import app
from classifleet.worker.models.verification import answer
from tests.models_support import skimage_photo

torch = pytest.importorskip("torch")
GROUPS = {"dog": (151, 269), "cat": (281, 286), "aircraft": (404, 406), "food": (923, 970)}


@pytest.fixture
def own(zoo: Path, tmp_path: Path) -> Path:
    """A repository of the test's own, with both built-in models as links."""
    for name in ("imagenet", "nsfw"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "1").symlink_to(zoo / name / "1")
    return tmp_path / "models"


def run(repository: Path, *arguments: object) -> str:
    """The command's output; its error is raised."""
    command = [*map(str, arguments), "--repository", str(repository)]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200"}, catch_exceptions=True)
    if result.exception is not None:
        raise result.exception
    return result.output


def error(repository: Path, *arguments: object) -> str:
    with pytest.raises(ClassifleetError) as caught:
        run(repository, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Groups(torch.nn.Module):
    """ImageNet's logits to one logit a group of classes: log odds of "one of mine" against "one of the others"."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        members = torch.zeros(len(GROUPS), 1000, dtype=torch.bool)
        for row, (first, end) in enumerate(GROUPS.values()):
            members[row, first:end] = True
        self.register_buffer("members", members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.net(x)[:, None]
        inside = logits.masked_fill(~self.members, -1e9).logsumexp(2)
        return inside - logits.masked_fill(self.members, -1e9).logsumexp(2)


def export(module: torch.nn.Module, path: Path, size: int = 224) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module.eval(), torch.zeros(2, 3, size, size), check_trace=False), str(path))
    return path


def labels_file(path: Path, labels: list[str]) -> Path:
    path.write_text(json.dumps(labels) if path.suffix == ".json" else "\n".join(labels) + "\n")
    return path


# looking


def test_help_is_fast_and_needs_no_torch():
    code = "import sys; from classifleet.worker.models.cli import app; assert not {'torch', 'PIL', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
    for command in ("list", "show", "verify", "add", "build"):
        result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert result.exit_code == 0
        assert f"classifleet models {command}" in result.output


def test_list(own):
    assert "imagenet@1" in run(own, "list")
    rows = {row["model"]: row for row in json.loads(run(own, "list", "--json"))}
    assert rows["imagenet@1"]["labels"] == 1000
    assert "first filter" in rows["nsfw@1"]["summary"]


def test_list_shows_a_broken_model_beside_the_others(own):
    (own / "broken" / "1").mkdir(parents=True)
    (own / "broken" / "1" / "model.json").write_text("{}")
    output = run(own, "list")
    assert "nsfw@1" in output
    assert "name: is missing" in output


def test_list_of_nothing_says_what_to_do(tmp_path):
    assert "classifleet models build" in run(tmp_path, "list")
    assert json.loads(run(tmp_path, "list", "--json")) == []


def test_repository_comes_from_the_settings(own, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_MODEL_REPOSITORY", str(own))
    result = CliRunner().invoke(app, ["list", "--json"])
    assert [row["model"] for row in json.loads(result.output)] == ["imagenet@1", "nsfw@1"]


def test_show(own):
    output = run(own, "show", "imagenet")
    assert "tench, goldfish" in output
    assert "(1000 in all)" in output
    assert json.loads(run(own, "show", "nsfw@1", "--json"))["input"]["layout"] == "NHWC"
    assert "has no model pets; it has imagenet@1, nsfw@1" in error(own, "show", "pets")


# verifying


def test_verify(own):
    output = run(own, "verify", "imagenet", "--image", skimage_photo("coffee.png"))
    assert "FAILED" not in output
    assert "analog clock" in output
    assert "espresso" in output
    checks = json.loads(run(own, "verify", "nsfw", "--json"))
    assert [check["what"] for check in checks] == ["description", "sha256", "model", "clock.bmp"]


def copy(own: Path, name: str) -> Path:
    """Replace the linked model by a copy that may be damaged."""
    import shutil

    folder = own / name / "1"
    source = folder.resolve()
    folder.unlink()
    shutil.copytree(source, folder)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_verify_finds_damage_in_one_line(own):
    (copy(own, "nsfw") / "model.pt").write_bytes(b"damaged")
    message = error(own, "verify", "nsfw")
    assert message.startswith("nsfw: 1 of 2 checks failed: model: ")
    assert "the file is damaged or was replaced" in message


def test_verify_finds_another_answer_and_other_classes(own):
    folder = copy(own, "nsfw")
    golden = json.loads((folder / "model.json").read_text())["golden"]
    edit(folder, golden=[golden[0] | {"confidence": 0.2}])
    assert "clock.bmp: sfw 0.9" in (message := error(own, "verify", "nsfw"))
    assert "expected sfw 0.200 ± 0.05" in message
    edit(folder, labels=["sfw", "nsfw", "other"], output={"activation": "none", "num_classes": 3}, golden=[])
    assert "the output is [2, 2]; described is [2, 3]" in error(own, "verify", "nsfw")


def test_verify_a_picture_that_is_none(own, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff nothing")
    assert "x.jpg: corrupt JPEG" in error(own, "verify", "nsfw", "--image", tmp_path / "x.jpg")
    assert "No such file" in error(own, "verify", "nsfw", "--image", tmp_path / "missing.jpg")


# building


def test_build_is_idempotent(own, zoo, tmp_path):
    assert "nsfw@1 is already in" in run(own, "build", "nsfw")
    fresh = tmp_path / "fresh"
    first = json.loads(run(fresh, "build", "nsfw", "--json"))
    again = json.loads(run(fresh, "build", "nsfw", "--json"))
    assert (first["added"], again["added"]) == (True, False)
    # the same bytes on every build, so that a fleet's machines agree on the digest
    assert first["sha256"] == again["sha256"] == Repository(zoo).describe("nsfw").sha256


def test_build_of_an_unknown_model(own):
    assert error(own, "build", "resnet") == "there is no built-in model 'resnet'; there are imagenet, nsfw"


# adding


def test_add_a_multi_label_model_with_real_weights(own, zoo, tmp_path):
    net = torch.jit.load(str(zoo / "imagenet" / "1" / "model.pt")) if False else _load(zoo / "imagenet" / "1" / "model.pt")
    export(Groups(net), tmp_path / "groups.pt")
    labels = labels_file(tmp_path / "labels.txt", list(GROUPS))
    command = (
        "add", "groups", tmp_path / "groups.pt", "--labels", labels, "--like", "imagenet", "--activation", "sigmoid",
        "--kind", "multi", "--license", "Apache-2.0", "--set", "output.threshold=0.4", "--set", "batch.max=8",
        "--golden", skimage_photo("chelsea.png"),
    )  # fmt: skip
    output = run(own, *command)
    assert "groups@1 added to" in output
    assert "golden/chelsea.png: cat 0.9" in output
    assert "is already in" in run(own, *command)
    assert "add it as version 2" in error(own, *command, "--set", "license=MIT")

    repository = Repository(own)
    description = repository.describe("groups")
    assert (description.output.kind, description.output.threshold, description.batch.max) == ("multi", 0.4, 8)
    assert description.source == "groups.pt"
    assert description.preprocess.digest == repository.describe("imagenet").preprocess.digest
    backend = load_backend(repository, "groups", device="cpu")
    for name, label in (("chelsea.png", "cat"), ("coffee.png", "food")):
        seen = answer(backend, description, skimage_photo(name).read_bytes())
        assert seen.top == label
        assert seen.confidence > 0.5
    spec = description.preprocess
    from classifleet.worker.decode import decode

    empty = decode(skimage_photo("brick.png").read_bytes(), targets=[spec]).pixels(spec)
    assert (backend.run(empty[np.newaxis]) < 0.4).all()  # none of the labels: softmax could not say that
    assert "FAILED" not in run(own, "verify", "groups")
