"""Where the limit of a device is: raw forward, JPEG to label without a queue, and the fleet, side by side.

    .venv/bin/python benchmarks/gpu.py [--device auto] [--photos 2000] [--rounds 3] [--json FILE]

On EfficientNet-Lite0 and a ResNet-50 (random weights: its speed is what counts). On a GPU the raw forward is eager
fp16, channels_last, with a CUDA graph and resident data; and JPEGs are decoded by the device, too, beside the CPU.
Without a GPU the same code runs as its CPU twin: that shows that it runs, and meets or misses no target.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import _eager, _gpu_decode
from benchmarks._ceiling import Ceiling
from benchmarks._ours import MODEL, TUNING, Ours
from benchmarks._outcome import Outcome, arguments
from benchmarks._photos import make_photos
from benchmarks._statistics import median, ratio_of_rounds

from classifleet.config import Settings
from classifleet.worker.loading import device_name
from classifleet.worker.models import Repository, open_repository

RESNET: Final = "resnet50"
FLEET_SHARE: Final = 0.85
FORWARD_SHARE: Final = 0.9
STAGES: Final = ("raw forward, resident", "forward, as a worker runs it", "JPEG to label, no queue", "fleet")


def main() -> None:
    """Each model in turn."""
    parser = arguments(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--photos", type=int, default=None, help="default: 2000 on a GPU, 200 on a CPU")
    parser.add_argument("--rounds", type=int, default=None, help="default: 3 on a GPU, 1 on a CPU")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each forward measurement")
    parser.add_argument("--tune-seconds", type=float, default=60)
    parser.add_argument("--models", nargs="*", default=[MODEL, RESNET], choices=[MODEL, RESNET])
    options = parser.parse_args()
    device = device_name(options.device)
    outcome = Outcome("gpu", "GPU" if is_gpu(device) else "GPU (its CPU twin: no GPU was there)")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rounds = options.rounds or (3 if is_gpu(device) else 1)
        count = options.photos or (2000 if is_gpu(device) else 200)
        photos = make_photos(folder / "photos", count)
        for model in options.models:
            settings = _settings(folder, model, device, options.tune_seconds)
            measure(outcome, model, settings, folder, photos, rounds, options.seconds)
        if not is_gpu(device):
            outcome.note("JPEG decoding on the GPU was not measured: there is none")
    outcome.write(options.json)


def measure(
    outcome: Outcome,
    model: str,
    settings: dict[str, str],
    folder: Path,
    photos: Sequence[Path],
    rounds: int,
    seconds: float,
) -> None:
    """All four stages of one model, round by round."""
    repository = open_repository(settings["MODEL_REPOSITORY"])
    file = repository.model_file(repository.resolve(model))
    ceiling, ours = (
        Ceiling(f"{model} without a queue", settings),
        Ours(model, folder / "photos", settings, model=model),
    )
    rates: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for _ in range(rounds):
        with ExitStack() as stack:
            stack.callback(ceiling.stop)
            ceiling.start(Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder))))
            batch = int(ceiling.details.partition("batch ")[2].partition(",")[0])
            ceiling.classify(photos[: len(photos) // 4])
            rates[STAGES[1]].append(ceiling.forward(seconds))
            rates[STAGES[2]].append(_rate(ceiling, photos))
        rates[STAGES[0]].append(_eager.rate(file, settings["DEVICE"], batch, seconds))
        with ExitStack() as stack:
            stack.callback(ours.stop)
            ours.start(Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder))))
            ours.classify(photos[: len(photos) // 4])
            rates[STAGES[3]].append(_rate(ours, photos))
    rows = [[stage, f"{median(rates[stage]):.1f}"] for stage in STAGES]
    outcome.table(f"{model} on {settings['DEVICE']}, {ceiling.details}", ["", "images/s"], rows)
    conclude(outcome, model, settings["DEVICE"], rates)
    limit = "decoding" if median(rates[STAGES[2]]) < 0.8 * median(rates[STAGES[1]]) else "the forward pass"
    outcome.note(f"{model}: the next limit is {limit}")
    if is_gpu(settings["DEVICE"]):
        decoders(outcome, model, _gpu_decode.rates(file, settings["DEVICE"], batch, seconds, folder / "photos"))


def conclude(outcome: Outcome, model: str, device: str, rates: Mapping[str, Sequence[float]]) -> None:
    """The verdicts, of a GPU."""
    forward = ratio_of_rounds(rates[STAGES[1]], rates[STAGES[0]])
    fleet = ratio_of_rounds(rates[STAGES[3]], rates[STAGES[2]])
    if not is_gpu(device):
        compared = "what tuning chose against torch in fp32"
        found = f"forward against raw {forward:.2f} ({compared}), fleet against no queue {fleet:.2f}"
        outcome.note(f"{model}: no GPU, no targets: {found}")
        return
    least = f"at least {FORWARD_SHARE}"
    outcome.target(f"{model}: forward against raw", least, f"{forward:.2f}", met=forward >= FORWARD_SHARE)
    least = f"at least {FLEET_SHARE}"
    outcome.target(f"{model}: fleet against no queue", least, f"{fleet:.2f}", met=fleet >= FLEET_SHARE)


def decoders(outcome: Outcome, model: str, found: Mapping[str, float | str]) -> None:
    """JPEG to label by who decodes."""
    rows = [[name, f"{rate:.1f}"] for name, rate in found.items() if not isinstance(rate, str)]
    outcome.table(f"{model}: JPEG to label, eager, the next batches decoded meanwhile", ["", "images/s"], rows)
    for name, why in found.items():
        if isinstance(why, str):
            outcome.note(f"{model}: not {name}: {why}")


def is_gpu(device: str) -> bool:
    """Whether targets mean something there."""
    return device.startswith("cuda")


def _rate(system: Ceiling | Ours, photos: Sequence[Path]) -> float:
    began = time.perf_counter()
    system.classify(photos)
    return len(photos) / (time.perf_counter() - began)


def _settings(folder: Path, model: str, device: str, tune_seconds: float) -> dict[str, str]:
    repository = add_resnet50(folder / "models") if model == RESNET else Settings.load().model_repository
    return {
        "MODELS": model,
        "DEVICE": device,
        "MODEL_REPOSITORY": str(repository),
        "TUNE_SECONDS": str(tune_seconds),
        "TUNING_CACHE": str(TUNING / "all"),
        "DECODED_IN_FLIGHT": "512",
    }


def add_resnet50(folder: Path) -> Path:
    """Put an untrained ResNet-50 into a repository."""
    import torch
    from torchvision.models import resnet50

    from classifleet.worker.models.description import Input
    from classifleet.worker.models.importers import Source, install

    def write(_: Input, path: Path) -> None:
        torch.manual_seed(0)
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, and what models arrive in
            traced = torch.jit.trace(resnet50().eval(), torch.zeros(1, 3, 224, 224))  # type: ignore[no-untyped-call]
            torch.jit.save(traced, str(path))

    fields = {
        "name": RESNET,
        "version": "1",
        "input": {"size": [224, 224]},
        "preprocess": {
            "resize": "shortest_edge_crop", "resize_size": 256, "crop_size": [224, 224],
            "interpolation": "bilinear", "scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        },
        "output": {"activation": "softmax", "num_classes": 1000},
        "labels": [f"class-{number}" for number in range(1000)],
        "license": "BSD-3-Clause",
        "source": "benchmarks/gpu.py",
    }  # fmt: skip
    install(Repository(folder), Source({"schema_version": 1, "format": "torchscript"}, write), fields)
    return folder


if __name__ == "__main__":
    main()
