"""From what people have (TorchScript, ONNX, a torchvision architecture with its weights) into the repository.

source ──► fields it knows + fields the user gave ──► description, checked ──► TorchScript file
       ──► runs, output width, batches agree, golden answers ──► Repository.add
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from classifleet.config.errors import ImageError, MissingExtra, ModelError
from classifleet.worker.models import _torchscript
from classifleet.worker.models._torch import TorchScriptBackend
from classifleet.worker.models.description import Input, ModelDescription, repeated_labels
from classifleet.worker.models.repository import MODEL_FILE, Repository, file_sha256
from classifleet.worker.models.verification import answer, check_batching

TORCHVISION: Final = "torchvision:"
GOLDEN_DIGITS: Final = 4
_NO_SHA256: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class Source:
    """Something that becomes a model: what it knows of its own description, and how to write its TorchScript."""

    fields: Mapping[str, Any]
    write: Callable[[Input, Path], None]


@dataclass(frozen=True, slots=True)
class Installed:
    """A model in the repository, and whether it is new there."""

    description: ModelDescription
    added: bool


def open_source(location: str, *, weights: Path | None = None, download: bool = False) -> Source:
    """What a location on the command line stands for.

    Args:
        location: `file.pt` or `file.pth` or `file.ts` (TorchScript), `file.onnx`, or `torchvision:<architecture>`.
        weights: For torchvision: the weights file, under the name that torchvision gives it.
        download: For torchvision: fetch the default weights from the internet.

    Raises:
        ModelError: There is no such file or architecture, or the kind is unknown.
        MissingExtra: ONNX without onnx2torch.
    """
    if location.startswith(TORCHVISION):
        return torchvision_source(location.removeprefix(TORCHVISION), weights=weights, download=download)
    path = Path(location)
    if not path.is_file():
        raise ModelError(f"{location}: no such file; give a .pt or .onnx file, or {TORCHVISION}<architecture>")
    if path.suffix == ".onnx":
        return onnx_source(path)
    return torchscript_source(path)


def torchscript_source(path: Path) -> Source:
    """A TorchScript file, taken as it is."""

    def write(_: Input, target: Path) -> None:
        shutil.copyfile(path, target)

    return Source({}, write)


def onnx_source(path: Path) -> Source:
    """An ONNX file, through onnx2torch and a trace."""

    def write(wanted: Input, target: Path) -> None:
        _export(_onnx_module(path), wanted, target)

    return Source({}, write)


def torchvision_source(architecture: str, *, weights: Path | None = None, download: bool = False) -> Source:
    """A torchvision classifier: labels, preprocessing and source are those of the weights' metadata.

    Raises:
        ModelError: The architecture is unknown, or it is not clear which weights the file holds.
    """
    from torchvision import models

    if architecture not in (known := models.list_models(module=models)):
        raise ModelError(f"torchvision has no classifier {architecture!r}; it has {', '.join(known)}")
    member = _choose_weights(architecture, models.get_model_weights(architecture), weights, download)

    def write(wanted: Input, target: Path) -> None:
        with _weights_at_hand(member.url, weights):
            module = models.get_model(architecture, weights=member, progress=False)
        _export(module, wanted, target)

    return Source(_torchvision_fields(architecture, member), write)


def install(
    repository: Repository,
    source: Source,
    fields: Mapping[str, Any],
    *,
    golden: Mapping[str, bytes] | None = None,
    origin: str = "the new model's description",
) -> Installed:
    """Describe, convert, try out and add a model.

    Args:
        repository: A local one.
        source: Where the module comes from.
        fields: Parts of `model.json` that the source does not know, or that replace what it says.
        golden: Encoded pictures by file name; the answers to them are recorded in the description.
        origin: Where the fields come from, for the error message.

    Raises:
        ModelError: The description is wrong, the model does not run as described, a golden picture is none, or the
            version is taken.
    """
    merged = _merge(source.fields, fields)
    draft = ModelDescription.from_fields({**merged, "sha256": _NO_SHA256}, where=origin)
    files = {f"golden/{name}": data for name, data in (golden or {}).items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        source.write(draft.input, path)
        described = draft.model_copy(update={"sha256": file_sha256(path)})
        entries = _golden_entries(described, path, files)
        final = ModelDescription.from_fields({**described.model_dump(mode="json"), "golden": entries}, where=origin)
        return Installed(final, repository.add(final, path, files=files))


def read_labels(path: Path) -> list[str]:
    """Labels in the order of the output: a JSON list, or a text file with one a line.

    Raises:
        ModelError: The file cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        labels = json.loads(text)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as labels: {error}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ModelError(f"{path}: must be a JSON list of strings")
    return labels


def distinct(labels: Sequence[str]) -> list[str]:
    """Labels made unique: one that occurs more than once gets its class index, `crane (134)` and `crane (517)`."""
    repeated = set(repeated_labels(labels))
    return [f"{label} ({index})" if label in repeated else label for index, label in enumerate(labels)]


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins, field by field in nested parts."""
    merged = dict(base)
    for name, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if nested else value
    return merged


def _golden_entries(description: ModelDescription, path: Path, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Run the model for the first time: is it what was described, and what does it say to the golden pictures?"""
    backend = TorchScriptBackend(description, path, "cpu")
    try:
        check_batching(backend, description)
        answers = {name: answer(backend, description, data) for name, data in files.items()}
    except ImageError as error:
        raise ModelError(f"{description.key}: a golden picture cannot be decoded: {error}") from error
    finally:
        backend.close()
    return [
        {
            "image": name,
            "sha256": hashlib.sha256(files[name]).hexdigest(),
            "top": seen.top,
            "confidence": round(seen.confidence, GOLDEN_DIGITS),
        }
        for name, seen in answers.items()
    ]


def _export(module: torch.nn.Module, wanted: Input, target: Path) -> None:
    rows, columns = wanted.size
    shape = (2, 3, rows, columns) if wanted.layout == "NCHW" else (2, rows, columns, 3)
    dtype = torch.float32 if wanted.dtype == "float16" else getattr(torch, wanted.dtype)
    traced = _torchscript.trace(module, torch.zeros(shape, dtype=dtype))
    _torchscript.save(traced.half() if wanted.dtype == "float16" else traced, target)


def _onnx_module(path: Path) -> torch.nn.Module:
    try:
        import onnx2torch
    except ImportError:
        raise MissingExtra("zoo", "an ONNX model") from None
    try:
        module: torch.nn.Module = onnx2torch.convert(str(path))
    except Exception as error:  # protobuf, onnx and onnx2torch each raise their own, without a common base
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{path}: onnx2torch cannot convert it: {reason}") from error
    return module


def _choose_weights(architecture: str, members: Any, weights: Path | None, download: bool) -> Any:
    """The metadata that belongs to the weights file; by another's, pictures would be prepared wrongly, in silence."""
    named = {member.url.rpartition("/")[2]: member for member in members if "categories" in member.meta}
    expected = " or ".join(named)
    if weights is None and download:
        return members.DEFAULT
    if weights is None:
        raise ModelError(f"{architecture} needs its weights: give --weights FILE ({expected}), or --download")
    if weights.name not in named:
        raise ModelError(f"{weights}: by its name not a weights file of {architecture}; expected {expected}")
    return named[weights.name]


@contextmanager
def _weights_at_hand(url: str, weights: Path | None) -> Iterator[None]:
    """Make torchvision find the user's file where it would put a download, so that nothing is fetched."""
    if weights is None:
        try:
            yield
        except OSError as error:  # urllib's errors are OSErrors
            raise ModelError(f"{url}: the download failed: {error}") from error
        return
    try:
        torch.load(weights, map_location="cpu", weights_only=True)  # torchvision would unpickle whatever is in it
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ModelError(f"{weights}: is not a file of weights: {str(error).partition(chr(10))[0]}") from error
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Path(folder) / "checkpoints"
        checkpoints.mkdir()
        (checkpoints / url.rpartition("/")[2]).symlink_to(weights.resolve())
        torch.hub.set_dir(folder)
        try:
            yield
        except RuntimeError as error:
            raise ModelError(f"{weights}: does not fit: {str(error).partition(chr(10))[0]}") from error
        finally:
            torch.hub.set_dir(before)


def _torchvision_fields(architecture: str, member: Any) -> dict[str, Any]:
    import torchvision

    transform, labels = member.transforms(), distinct(member.meta["categories"])
    size = transform.crop_size * 2 if len(transform.crop_size) == 1 else transform.crop_size
    return {
        "input": {"size": size},
        "preprocess": {
            "resize": "shortest_edge_crop",
            "resize_size": transform.resize_size[0],
            "crop_size": size,
            "interpolation": transform.interpolation.value,
            "antialias": bool(transform.antialias),
            "scale": 1 / 255,
            "mean": transform.mean,
            "std": transform.std,
        },
        "output": {"activation": "softmax", "num_classes": len(labels)},
        "labels": labels,
        "license": member.meta.get("license", "BSD-3-Clause (torchvision); trained on ImageNet"),
        "source": f"torchvision {torchvision.__version__} {architecture} {member.name}, {member.url}",
    }
