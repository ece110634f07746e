"""EfficientNet-Lite0, as small as it can be written: the weights' names decide the attributes' names.

Architecture: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite (no squeeze-and-excite,
ReLU6). TensorFlow pads strided convolutions "same", which is one pixel more on the right and below; padding evenly
costs 8 to 13 of 100 photos. For an input of 224 every strided convolution sees an even size, so the padding is fixed.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

INPUT_SIZE: Final = 224
NUM_CLASSES: Final = 1000
_EPSILON: Final = 1e-3
_STEM: Final = 32
_HEAD: Final = 1280
# repeats, kernel, stride of the first, expansion, channels out
_STAGES: Final = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """float32 [N, 3, 224, 224] to logits [N, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _conv(3, _STEM, kernel=3, stride=2)
        self._bn0 = _norm(_STEM)
        blocks, channels = [], _STEM
        for repeats, kernel, stride, expansion, out in _STAGES:
            for index in range(repeats):
                blocks.append(_Block(channels, out, kernel, stride if index == 0 else 1, expansion))
                channels = out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = _conv(channels, _HEAD, kernel=1)
        self._bn1 = _norm(_HEAD)
        self._fc = nn.Linear(_HEAD, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify."""
        x = nn.functional.relu6(self._bn0(self._conv_stem(_pad_same(x, 3, 2))))
        x = nn.functional.relu6(self._bn1(self._conv_head(self._blocks(x))))
        logits: torch.Tensor = self._fc(x.mean((2, 3)))
        return logits


class _Block(nn.Module):
    """Expand, convolve each channel by itself, project; with a shortcut where the shape stays."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self._kernel, self._stride = kernel, stride
        self._expands = expansion > 1
        self._shortcut = stride == 1 and channels == out
        if self._expands:
            self._expand_conv = _conv(channels, inner, kernel=1)
            self._bn0 = _norm(inner)
        self._depthwise_conv = _conv(inner, inner, kernel=kernel, stride=stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = _conv(inner, out, kernel=1)
        self._bn2 = _norm(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        if self._expands:
            y = nn.functional.relu6(self._bn0(self._expand_conv(y)))
        y = self._depthwise_conv(_pad_same(y, self._kernel, self._stride))
        out: torch.Tensor = self._bn2(self._project_conv(nn.functional.relu6(self._bn1(y))))
        return x + out if self._shortcut else out


def _conv(channels: int, out: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = kernel // 2 if stride == 1 else 0  # strided ones are padded by _pad_same
    return nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)


def _pad_same(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """TensorFlow's "same" padding for stride 2 and an even size: one less on the left and above."""
    if stride == 1:
        return x
    before, after = kernel // 2 - 1, kernel // 2
    return nn.functional.pad(x, (before, after, before, after))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON)
