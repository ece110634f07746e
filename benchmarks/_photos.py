"""Photos to classify: as many as wanted, made of the few that there are by small crops and flips, always the same."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Final

import skimage
from PIL import Image

FOLDER: Final = Path(__file__).parents[2] / "shared" / "data" / "photos"
"""Photos beside the checkout, where there are some; else those of scikit-image."""
_SKIMAGE: Final = (
    "astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "hubble_deep_field.jpg",
    "ihc.png", "retina.jpg",
)  # fmt: skip
_CROPPED: Final = 0.08  # of each edge, at most
_LONGEST: Final = 640
_QUALITY: Final = 90


def sources() -> list[Path]:
    """The photos that others are made of, in an order that does not change."""
    if FOLDER.is_dir():
        return sorted(FOLDER.iterdir())
    return [Path(skimage.__file__).parent / "data" / name for name in _SKIMAGE]


def make_photos(folder: Path, count: int, *, seed: int = 2026) -> list[Path]:
    """Write so many JPEGs of usual size into a folder.

    Returns:
        Their paths; neighbours in the list come of different sources.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    found = sources()
    made = []
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        path.write_bytes(_variant(found[number % len(found)], generator, plain=number < len(found)))
        made.append(path)
    return made


def small_photos(folder: Path, count: int, edge: int = 96) -> list[Path]:
    """Photos that cost next to nothing to decode."""
    paths = []
    for path in make_photos(folder, count):
        with Image.open(path) as image:
            image.resize((edge, edge)).save(path, "JPEG", quality=_QUALITY)
        paths.append(path)
    return paths


def _variant(source: Path, generator: random.Random, *, plain: bool) -> bytes:
    """A photo as it is (encoded again), or a crop of it, flipped half of the time."""
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    image.thumbnail((_LONGEST, _LONGEST))
    if not plain:
        width, height = image.size
        left, top, right, bottom = (generator.uniform(0, _CROPPED) for _ in range(4))
        image = image.crop(
            (int(left * width), int(top * height), int((1 - right) * width), int((1 - bottom) * height))
        )
        if generator.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
