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


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", ["imagenet", "nsfw"])
def test_pixels_and_answers_are_those_of_a_full_decode(zoo: Path, name: str, exact: bool) -> None:
    from classifleet.worker.models import Repository, load_backend

    repository = Repository(zoo)
    key = repository.resolve(name)
    spec = repository.describe(key).preprocess
    backend = load_backend(repository, key, device="cpu")
    found = photos()
    worst_level, worst_mean, same = 0, 0.0, 0
    collection = [*found, *map(enlarged, found[:ENLARGED])]
    for data in collection:
        ours = prepare(data, {"": spec}, DecodeLimits(exact=exact))[1][""]
        plain = reference(data, spec)
        difference = np.abs(ours.astype(int) - plain)
        worst_level, worst_mean = max(worst_level, difference.max()), max(worst_mean, difference.mean())
        tops = [int(np.argmax(backend.run(pixels[None])[0])) for pixels in (ours, plain)]
        same += tops[0] == tops[1]
    backend.close()
    print(f"\n{name}, exact={exact}: at most {worst_level} levels, mean at most {worst_mean:.3f}, top-1 same {same}")
    assert worst_level <= MOST_LEVELS
    assert worst_mean < MEAN_LEVELS
    assert same == len(collection)
