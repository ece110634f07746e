"""What a worker makes of real photos, against a full decode by Pillow and torchvision's transforms."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifleet.worker.decode import DecodeLimits, prepare
from tests.models_support import PHOTOS

torch = pytest.importorskip("torch")
v2 = pytest.importorskip("torchvision.transforms.v2")

MOST_LEVELS, MEAN_LEVELS = 10, 0.5
TWELVE_MEGAPIXELS = (4000, 3000)
ENLARGED = 12
BATCH = 8

pytestmark = pytest.mark.skipif(not PHOTOS.is_dir(), reason="the collection of photos is not here")


def photos() -> list[bytes]:
    return [path.read_bytes() for path in sorted(PHOTOS.iterdir())]


def enlarged(data: bytes) -> bytes:
    file = io.BytesIO()
    image = Image.open(io.BytesIO(data)).convert("RGB").resize(TWELVE_MEGAPIXELS, Image.Resampling.BICUBIC)
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def reference(data: bytes, spec) -> np.ndarray:
    """Plain Pillow and torchvision, as a training pipeline has it."""
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    mode = v2.InterpolationMode(spec.interpolation)
    if spec.resize == "shortest_edge_crop":
        resize = v2.Resize(spec.resize_size, interpolation=mode, antialias=True)
    else:
        resize = v2.Resize(spec.resize_hw, interpolation=mode, antialias=True)
    return v2.CenterCrop(spec.output_size)(resize(pixels)).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("name", "exact"), [("imagenet", False), ("imagenet", True), ("nsfw", False)])
def test_pixels_and_answers_are_those_of_a_full_decode(zoo: Path, name: str, exact: bool) -> None:
    from classifleet.worker.models import Repository, load_backend

    repository = Repository(zoo)
    key = repository.resolve(name)
    spec = repository.describe(key).preprocess
    found = photos()
    collection = [*found, *map(enlarged, found[:ENLARGED])]
    ours = np.stack([prepare(data, {"": spec}, DecodeLimits(exact=exact))[1][""] for data in collection])
    plain = np.stack([reference(data, spec) for data in collection])
    difference = np.abs(ours.astype(int) - plain)
    means = difference.mean(axis=(1, 2, 3))
    backend = load_backend(repository, key, device="cpu")
    batches = [slice(at, at + BATCH) for at in range(0, len(collection), BATCH)]
    tops = [np.concatenate([np.argmax(backend.run(both[at]), axis=1) for at in batches]) for both in (ours, plain)]
    backend.close()
    same = int((tops[0] == tops[1]).sum())
    print(
        f"\n{name}, exact={exact}: at most {difference.max()} levels, mean {means[: len(found)].max():.3f} at most, "
        f"{means[len(found) :].mean():.3f} and {means.max():.3f} at most where enlarged, "
        f"top-1 the same for {same} of {len(collection)}"
    )
    assert difference.max() <= MOST_LEVELS
    assert means.max() < MEAN_LEVELS
    assert same == len(collection)
