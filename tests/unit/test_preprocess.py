import io

import numpy as np
import pytest
from PIL import Image

from classifleet.worker.preprocess import Picture, preprocess, scaled_size
from tests.models_support import noise, skimage_photo, spec

torch = pytest.importorskip("torch")
v2 = pytest.importorskip("torchvision.transforms.v2")

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg")
MOST_LEVELS, MEAN_LEVELS = 10, 0.5
RED = (255, 0, 0)
IMAGENET = {"resize": "shortest_edge_crop", "resize_size": 256, "crop_size": [224, 224]}


def photo(name: str) -> Image.Image:
    return Image.open(io.BytesIO(skimage_photo(name).read_bytes())).convert("RGB")


def to_tensor(image: Image.Image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def assert_alike(pixels, reference, mean_levels=MEAN_LEVELS) -> None:
    difference = np.abs(pixels.astype(int) - reference.permute(1, 2, 0).numpy().astype(int))
    assert difference.max() <= MOST_LEVELS
    assert difference.mean() < mean_levels


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic"])
def test_shortest_edge_crop_equals_torchvision(name, filter_name):
    image = photo(name)
    mode = v2.InterpolationMode(filter_name)
    reference = v2.Compose([v2.Resize(256, interpolation=mode, antialias=True), v2.CenterCrop(224)])(to_tensor(image))
    assert_alike(preprocess(Picture(image), spec(**IMAGENET, interpolation=filter_name)), reference)


@pytest.mark.parametrize("size", [(333, 500), (500, 333), (240, 180), (1000, 800)])
def test_bicubic_overshoots_in_torchvisions_order(size):
    """Hard edges: with columns before rows, as Pillow prefers for tall pictures, this is off by far more."""
    grid = np.random.default_rng(3).integers(0, 2, (size[1] // 4, size[0] // 4, 3), np.uint8) * 255
    image = Image.fromarray(grid).resize(size, Image.Resampling.NEAREST)
    mode = v2.InterpolationMode.BICUBIC
    reference = v2.Compose([v2.Resize(256, interpolation=mode, antialias=True), v2.CenterCrop(224)])(to_tensor(image))
    pixels = preprocess(Picture(image), spec(**IMAGENET, interpolation="bicubic"))
    assert np.abs(pixels.astype(int) - reference.permute(1, 2, 0).numpy()).max() <= 2


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_stretch_and_crop_equals_torchvision(name, kernel):
    image = photo(name)
    resize = v2.Resize((256, 320), interpolation=v2.InterpolationMode(kernel), antialias=True)
    chosen = spec(resize="stretch", resize_size=[256, 320], crop_size=[224, 288], interpolation=kernel)
    assert_alike(preprocess(Picture(image), chosen), v2.CenterCrop((224, 288))(resize(to_tensor(image))))


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_letterbox_equals_torchvision(name, kernel):
    image = photo(name)
    chosen = spec(resize="letterbox", resize_size=[320, 256], pad_color=[114, 115, 116], interpolation=kernel)
    width, height = scaled_size(image.size, chosen)
    assert width == 256 or height == 320
    mode = v2.InterpolationMode(kernel)
    inner = v2.functional.resize(to_tensor(image), [height, width], interpolation=mode, antialias=True)
    reference = torch.tensor([114, 115, 116], dtype=torch.uint8)[:, None, None].repeat(1, 320, 256)
    top, left = (320 - height) // 2, (256 - width) // 2
    reference[:, top : top + height, left : left + width] = inner
    assert_alike(preprocess(Picture(image), chosen), reference)


@pytest.mark.parametrize("name", PHOTOS[:3])
def test_without_antialias_equals_torchvision(name):
    image = photo(name)
    reference = v2.functional.resize(to_tensor(image), [100, 90], antialias=False)
    pixels = preprocess(Picture(image), spec(resize="stretch", resize_size=[100, 90], antialias=False))
    assert_alike(pixels, reference, mean_levels=1.0)  # here Pillow rounds down and torch to the nearest level


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (224, 224), (223, 257), (256, 256), (5, 1000)])
@pytest.mark.parametrize(
    "fields", [IMAGENET, {"resize": "stretch", "resize_size": 224}, {"resize": "letterbox", "resize_size": 224}]
)
@pytest.mark.parametrize("antialias", [True, False])
def test_any_size_gives_the_models_size(size, fields, antialias):
    pixels = preprocess(Picture(noise(*size)), spec(**fields, antialias=antialias))
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8


def test_a_very_long_picture_stays_small():
    # scaled as a whole it would have 15 million columns of 256 rows
    assert preprocess(Picture(Image.new("RGB", (60_000, 1), (9, 8, 7))), spec(**IMAGENET))[0, 0].tolist() == [9, 8, 7]


def test_box_leaves_out_what_is_no_picture():
    frayed = Image.new("RGB", (21, 11), RED)
    frayed.paste((0, 0, 255), (0, 0, 20, 10))
    for resize in ("stretch", "letterbox"):
        chosen = spec(resize=resize, resize_size=[5, 10], interpolation="nearest")
        assert (preprocess(Picture(frayed, (0, 0, 20, 10)), chosen) == (0, 0, 255)).all()


def test_what_is_of_the_right_size_is_not_touched():
    image = noise(224, 224)
    for fields in ({"resize": "stretch", "resize_size": 224}, {"resize": "letterbox", "resize_size": 224}):
        assert np.array_equal(preprocess(Picture(image), spec(**fields)), np.asarray(image))


def test_nearest_takes_pixels_as_they_are():
    image = Image.fromarray(np.array([[[0] * 3, [255] * 3]], np.uint8))
    pixels = preprocess(Picture(image), spec(resize="stretch", resize_size=[2, 4], interpolation="nearest"))
    assert pixels[:, :, 0].tolist() == [[0, 0, 255, 255]] * 2
