"""Where the bounds of the gate lie between what was measured: right, slightly wrong and grossly wrong variants.

The figures are those of docs/tuning.md, of 200 pictures each.
"""

from __future__ import annotations

import numpy as np
import pytest

from classifleet.worker.models.parity import Parity, compare, reasons_against

PICTURES = 200


@pytest.mark.parametrize(
    ("variant", "decided", "agreeing", "mean_worst", "worst", "passes"),
    [
        ("imagenet openvino/bf16", 133, 133, 0.0122, 0.061, True),
        ("imagenet torchscript/autocast_bf16", 133, 132, 0.0116, 0.075, True),
        ("imagenet torchscript/bf16", 133, 131, 0.0232, 0.178, False),
        ("imagenet inductor/bf16", 133, 132, 0.0223, 0.163, False),
        ("imagenet weights of 8 bits", 133, 132, 0.0321, 0.269, False),
        ("imagenet red and blue swapped", 133, 103, 0.1039, 0.646, False),
        ("imagenet weights of 6 bits", 133, 84, 0.2304, 0.820, False),
        ("nsfw openvino/bf16", 200, 200, 0.0007, 0.015, True),
        ("nsfw torchscript/bf16", 200, 200, 0.0014, 0.015, True),
        ("nsfw weights of 8 bits", 200, 200, 0.0016, 0.031, True),
        ("nsfw weights of 6 bits", 200, 199, 0.0130, 0.295, False),
        ("nsfw red and blue swapped", 200, 199, 0.0140, 0.245, False),
        ("nsfw answers to the wrong picture", 200, 198, 0.0461, 0.588, False),
    ],
)
def test_what_was_measured(variant, decided, agreeing, mean_worst, worst, passes):
    reasons = reasons_against(Parity(PICTURES, decided, agreeing, mean_worst, worst), "bf16")
    assert (reasons == ()) is passes, (variant, reasons)


def test_a_model_that_nearly_always_says_the_same_hides_nothing():
    """One wrong picture of 200 is 99.5 % equal answers and 0.003 in the mean; only the largest difference tells."""
    sure = np.full(PICTURES, 0.98, np.float32)
    other = sure.copy()
    other[7] = 0.4
    plain, variant = (np.stack([scores, 1 - scores], axis=1) for scores in (sure, other))
    parity = compare(plain, variant, kind="single", threshold=0.5)
    assert parity.agreement > 0.99
    [reason] = reasons_against(parity, "bf16")
    assert "a score differs by 0.58" in reason
