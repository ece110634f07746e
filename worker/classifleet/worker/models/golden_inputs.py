"""Pictures on which variants of a model are compared: real photos, augmented until there are enough.

the model's own golden pictures + photos of the operator, else of scikit-image ─► crops, flips, light ─► uint8

Without any photo there are synthetic pictures, by which only fp32 is judged.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from classifleet.config import ImageError
from classifleet.worker.decode import decode
from classifleet.worker.models.description import ModelDescription
from classifleet.worker.preprocess import preprocess

MIN_PICTURES: Final = 200
MIN_PHOTOS: Final = 5
"""Fewer photos than this are one scene over and over, however they are cropped."""
MAX_PHOTOS: Final = 1000
"""Of the operator's; more prove no more, and take time and memory. Of a larger folder every n-th is used."""
FEW: Final = 8
"""Pictures that show whether freezing has gone wrong: each costs what the file takes as it came."""
MAX_PHOTO_EDGE: Final = 1024
MAX_SAMPLES: Final = 8
SAMPLE_EDGE: Final = 500
"""Pixels: about what photos on the web have that are classified."""
_SAMPLE_QUALITY: Final = 90
_SKIMAGE: Final = (
    "astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png", "hubble_deep_field.jpg",
    "ihc.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
_SEED: Final = 20_26


@dataclass(frozen=True, slots=True)
class GoldenInputs:
    """Preprocessed pictures, uint8 [N, h, w, 3], and what they came from.

    Attributes:
        pixels: Each photo as it is, then augmented ones up to `MIN_PICTURES`.
        photos: How many different photos they were made of.
        digest: Identifies them.
        samples: Some of the photos as files, as JPEG of `SAMPLE_EDGE` if they are not the operator's own.
    """

    pixels: NDArray[np.uint8]
    photos: int
    digest: str
    samples: tuple[bytes, ...] = ()

    @property
    def representative(self) -> bool:
        """Whether they can prove that reduced precision gives the same answers."""
        return self.photos >= MIN_PHOTOS and len(self.pixels) >= MIN_PICTURES


def golden_inputs(description: ModelDescription, folder: Path, photos: Sequence[Path] = ()) -> GoldenInputs:
    """Make the pictures for one model.

    Args:
        description: Says how pictures are preprocessed, and which golden pictures there are.
        folder: The model's folder, which holds them.
        photos: The operator's own photos; best, because they are what will be classified.

    Raises:
        ImageError: One of them is not a picture.
    """
    photos = photos[:: math.ceil(len(photos) / MAX_PHOTOS) or 1]
    sources = [path.read_bytes() for path in (*_own(description, folder), *(photos or shipped()))]
    pixels = [_pixels(data, description) for data in sources]
    generator = np.random.default_rng(_SEED)
    while sources and len(pixels) < MIN_PICTURES:
        photo = sources[len(pixels) % len(sources)]
        pixels.append(_pixels(_augmented(photo, generator), description))
    digest = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in sources)).hexdigest()[:16]
    size = description.input.size
    stacked = np.stack(pixels) if pixels else np.empty((0, *size, 3), np.uint8)
    own_photos = [path.read_bytes() for path in photos[:MAX_SAMPLES]]
    samples = own_photos or [_sample(data) for data in sources[:MAX_SAMPLES]]
    return GoldenInputs(stacked, len(sources), digest, tuple(samples))


def shipped() -> list[Path]:
    """The photos that scikit-image brings; none if it is not installed."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent / "data"
    return [folder / name for name in _SKIMAGE if (folder / name).is_file()]


def photos_at_hand(description: ModelDescription) -> int:
    """How many photos `golden_inputs` would find without any of the operator's."""
    return len(description.golden) + len(shipped())


def few_pictures(description: ModelDescription, folder: Path) -> NDArray[np.uint8]:
    """`FEW` pictures, made quickly: photos, then their mirror images, then synthetic ones."""
    photos = []
    for path in [*_own(description, folder), *shipped()][:FEW]:
        with suppress(OSError, ImageError):  # `models verify` says that a golden picture is damaged
            photos.append(_pixels(path.read_bytes(), description))
    mirrored = [each[:, ::-1] for each in photos]
    return np.stack([*photos, *mirrored, *synthetic(description)][:FEW])


def synthetic(description: ModelDescription, count: int = FEW) -> NDArray[np.uint8]:
    """Coloured pictures [count, h, w, 3] of every coarseness, from two by two patches to noise."""
    generator = np.random.default_rng(_SEED)
    height, width = description.input.size
    steps = max(1, int(math.log2(max(2, min(height, width)))))
    edges = [2 ** (1 + number % steps) for number in range(count)]
    patches = [generator.integers(0, 256, (edge, edge, 3), np.uint8) for edge in edges]
    scaled = [Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC) for each in patches]
    return np.stack([np.asarray(each) for each in scaled])


def noise(description: ModelDescription, count: int) -> NDArray[np.uint8]:
    """Random pixels [count, h, w, 3]: they only show whether a variant runs and stays finite."""
    generator = np.random.default_rng(_SEED)
    return generator.integers(0, 256, (count, *description.input.size, 3), np.uint8)


def _own(description: ModelDescription, folder: Path) -> list[Path]:
    return [folder / golden.image for golden in description.golden]


def _sample(data: bytes) -> bytes:
    """A photo as a typical JPEG."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((SAMPLE_EDGE, SAMPLE_EDGE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_SAMPLE_QUALITY)
    return buffer.getvalue()


def _pixels(data: bytes, description: ModelDescription) -> NDArray[np.uint8]:
    spec = description.preprocess
    return preprocess(decode(data, targets=(spec,)).picture(spec), spec)


def _augmented(data: bytes, generator: np.random.Generator) -> bytes:
    """Another view of the same photo: a part of it, perhaps mirrored, in another light."""
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft("RGB", (MAX_PHOTO_EDGE, MAX_PHOTO_EDGE))
        picture = opened.convert("RGB")
    share = generator.uniform(0.3, 1.0)
    width, height = (max(1, int(edge * share**0.5)) for edge in picture.size)
    left = int(generator.integers(0, picture.width - width + 1))
    top = int(generator.integers(0, picture.height - height + 1))
    picture = picture.crop((left, top, left + width, top + height))
    if generator.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(float(generator.uniform(0.7, 1.3)))
    buffer = io.BytesIO()
    picture.save(buffer, "BMP")
    return buffer.getvalue()
