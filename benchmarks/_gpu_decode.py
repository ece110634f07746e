"""JPEG to label in one process, decoded by the CPU's cores or by the device: what decoding there would bring.

Run as a program, with the model's file, the device, the batch, seconds and a folder of JPEGs, it prints one JSON
object: images a second by decoder, or why it has none. The same forward pass as of `_eager` follows each; resizing is
torch's where the device decodes. Without a GPU the same code runs on the CPU: that shows that it runs, no more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import _eager

from classifleet.worker.cores import usable_cores
from classifleet.worker.decode import DecodeLimits, prepare
from classifleet.worker.models import ModelDescription
from classifleet.worker.models.description import Preprocess
from classifleet.worker.preprocess import scaled_size

if TYPE_CHECKING:
    from torch import Tensor

Decode = Callable[[Sequence[bytes]], "Tensor"]
"""JPEGs to uint8 [n, 3, h, w] on the device, as the model takes them."""
AHEAD: Final = 2  # batches
WARM: Final = 5


def rates(file: Path, device: str, batch: int, seconds: float, photos: Path) -> dict[str, float | str]:
    """Images a second by decoder, or what is wrong with it, found in a process of its own."""
    command = [sys.executable, __file__, *map(str, (file, device, batch, seconds, photos))]
    found: dict[str, float | str] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main(file: str, device: str, batch: int, seconds: float, photos: str) -> None:
    """Print what `rates` returns."""
    import torch

    spec = ModelDescription.read(Path(file).with_name("model.json")).preprocess
    files = [path.read_bytes() for path in sorted(Path(photos).iterdir())]
    found: dict[str, float | str] = {}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        module, dtype = _eager.load(file, device)
        for name, make in DECODERS.items():
            try:
                decode = make(spec, device)
                found[name] = _rate(decode, lambda pixels: module(pixels.to(dtype) / 255), files, batch, seconds)
            except (ImportError, RuntimeError, AttributeError) as error:
                found[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
    print(json.dumps(found))


def _rate(
    decode: Decode, forward: Callable[[Tensor], Tensor], files: Sequence[bytes], batch: int, seconds: float
) -> float:
    """Images a second, the next batches being decoded while one runs."""
    turn = cycle(files)
    with ThreadPoolExecutor(AHEAD) as ahead:
        waiting = [ahead.submit(decode, [next(turn) for _ in range(batch)]) for _ in range(AHEAD)]
        count, began = -WARM * batch, time.perf_counter()
        while count < batch or time.perf_counter() - began < seconds:
            waiting.append(ahead.submit(decode, [next(turn) for _ in range(batch)]))
            forward(waiting.pop(0).result()).argmax(1).tolist()
            count += batch
            if count == 0:
                began = time.perf_counter()
        return count / (time.perf_counter() - began)


def _cpu(spec: Preprocess, device: str) -> Decode:
    """The worker's own, on all cores."""
    import torch

    pool = ThreadPoolExecutor(usable_cores())

    def one(data: bytes) -> NDArray[np.uint8]:
        return prepare(data, {spec.digest: spec}, DecodeLimits())[1][spec.digest]

    def decode(files: Sequence[bytes]) -> Tensor:
        return torch.from_numpy(np.stack(list(pool.map(one, files)))).to(device).permute(0, 3, 1, 2)

    return decode


def _torchvision(spec: Preprocess, device: str) -> Decode:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(files: Sequence[bytes]) -> Tensor:
        data = [torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in files]
        return torch.stack([_resized(each, spec) for each in decode_jpeg(data, ImageReadMode.RGB, device=device)])

    return decode


def _torchcodec(spec: Preprocess, device: str) -> Decode:
    import torch
    from torchcodec.decoders import decode_jpeg

    return lambda files: torch.stack([_resized(decode_jpeg(each, device=device), spec) for each in files])


def _nvimagecodec(spec: Preprocess, device: str) -> Decode:
    import torch
    from nvidia import nvimgcodec
    from torch.utils.dlpack import from_dlpack

    decoder = nvimgcodec.Decoder()

    def decode(files: Sequence[bytes]) -> Tensor:
        images = [from_dlpack(image.to_dlpack()) for image in decoder.decode(list(files))]
        return torch.stack([_resized(image.to(device).permute(2, 0, 1), spec) for image in images])

    return decode


def _resized(image: Tensor, spec: Preprocess) -> Tensor:
    """Scaled and cropped, uint8 [3, h, w]."""
    from torchvision.transforms.v2 import functional

    width, height = scaled_size((image.shape[2], image.shape[1]), spec)
    scaled = functional.resize(image, [height, width], antialias=True)
    cropped: Tensor = functional.center_crop(scaled, list(spec.output_size))
    return cropped


DECODERS: Final[Mapping[str, Callable[[Preprocess, str], Decode]]] = {
    "decoded by the CPU": _cpu,
    "decoded by torchvision (nvJPEG)": _torchvision,
    "decoded by torchcodec": _torchcodec,
    "decoded by nvImageCodec": _nvimagecodec,
}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
