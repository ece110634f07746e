"""Resizing by either library, against torch and against each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from classifleet.worker import resample as module
from classifleet.worker.resample import resample
from tests.models_support import noise

torch = pytest.importorskip("torch")

KERNELS = ("bilinear", "bicubic")
with_fast = pytest.mark.skipif(module.fast is None, reason="no cykooz_resizer here")


def grid(width: int, height: int) -> np.ndarray:
    """Hard edges in random colours."""
    return np.random.default_rng(3).integers(0, 2, (height, width, 3), np.uint8) * 255


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(50, 40), (200, 40), (31, 300), (400, 400)])
@pytest.mark.parametrize("pillow", [False, True])
def test_equals_torch(kernel, size, pillow):
    source = grid(240, 180)
    tensor = torch.from_numpy(source).permute(2, 0, 1)[None]
    wanted = torch.nn.functional.interpolate(tensor, size=size[::-1], mode=kernel, antialias=True)[0]
    found = resample(Image.fromarray(source) if pillow else source, size, (0, 0, 240, 180), kernel)
    assert np.abs(found.astype(int) - wanted.permute(1, 2, 0).numpy()).max() <= 2


part = st.floats(0, 1)


@with_fast
@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 300), st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.tuples(part, part, part, part), st.sampled_from(KERNELS), st.booleans(),
)  # fmt: skip
def test_any_part_of_any_array_is_as_in_pillow(width, height, size, parts, kernel, columns_first):
    (left, right), (top, bottom) = sorted(parts[:2]), sorted(parts[2:])
    box = (left * width, top * height, right * width, bottom * height)
    if box[2] - box[0] < 1e-3 or box[3] - box[1] < 1e-3:
        box = (0, 0, width, height)
    source = grid(width, height)
    found = resample(source, size, box, kernel, columns_first=columns_first)
    assert found.shape == (size[1], size[0], 3)
    wanted = resample(Image.fromarray(source), size, box, kernel, columns_first=columns_first)
    assert np.abs(found.astype(int) - wanted).max() <= 2


@with_fast
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("columns_first", [False, True])
@pytest.mark.parametrize("strip", [1, 1_000, 5_000])
def test_strips_do_not_show(strip, columns_first, kernel, monkeypatch):
    source = grid(150, 90)
    whole = resample(source, (60, 40), (7.3, 2.1, 140, 90), kernel, columns_first=columns_first)
    monkeypatch.setattr(module, "STRIP_BYTES", strip)
    found = resample(source, (60, 40), (7.3, 2.1, 140, 90), kernel, columns_first=columns_first)
    assert np.array_equal(found, whole)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(60, 20), (20, 60)])
def test_columns_first_is_the_turned_picture(kernel, size):
    source = grid(150, 90)
    turned = np.ascontiguousarray(source.swapaxes(0, 1))
    found = resample(source, size, (7.3, 2.1, 140, 90), kernel, columns_first=True)
    assert np.array_equal(found, resample(turned, size[::-1], (2.1, 7.3, 90, 140), kernel).swapaxes(0, 1))


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_the_fast_library(kernel, monkeypatch):
    source = np.asarray(noise(300, 200))
    found = resample(source, (90, 70), (10.5, 3, 280, 200), kernel)
    monkeypatch.setattr(module, "fast", None)
    slow = resample(source, (90, 70), (10.5, 3, 280, 200), kernel)
    assert np.abs(found.astype(int) - slow).max() <= 1


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(65_500, 1), (1, 65_500)])
def test_thin_arrays(kernel, size):
    source = np.full((size[1], size[0], 3), 77, np.uint8)
    assert (resample(source, (224, 224), (0, 0, *size), kernel) == 77).all()
    middle = (max(0, size[0] / 2 - 0.4), 0, min(size[0], size[0] / 2 + 0.4), size[1])
    assert (resample(source, (224, 224), middle, kernel) == 77).all()


def test_a_strip_between_the_passes_stays_small(monkeypatch):
    monkeypatch.setattr(module, "MAX_STRIP_PIXELS", 1000)
    source = grid(200, 300)
    found = resample(source, (100, 2), (0, 0, 200, 300), "bicubic")
    assert np.array_equal(found, np.asarray(Image.fromarray(source).resize((100, 2), Image.Resampling.BICUBIC)))
