"""The gate between a fast variant of a model and its users."""

from __future__ import annotations

import numpy as np
import pytest

from classifleet.worker.models.parity import DECIDED_MARGIN, Parity, compare, reasons_against

PICTURES = 400


def scores(generator: np.random.Generator, *, sure: float = 6.0) -> np.ndarray:
    """Softmax scores of ten classes as a trained model gives them: mostly decided."""
    raw = generator.normal(size=(PICTURES, 10)) * 0.5
    raw[np.arange(PICTURES), generator.integers(0, 10, PICTURES)] += generator.uniform(0, sure, PICTURES)
    odds = np.exp(raw)
    return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def plain() -> np.ndarray:
    return scores(np.random.default_rng(1))


def judge(plain: np.ndarray, variant: np.ndarray, precision="bf16", kind="single") -> tuple[Parity, tuple[str, ...]]:
    parity = compare(plain, variant.astype(np.float32), kind=kind, threshold=0.5)
    return parity, reasons_against(parity, precision)


def test_the_same_answers_pass_everywhere(plain):
    for precision in ("fp32", "bf16", "fp16"):
        parity, reasons = judge(plain, plain.copy(), precision)
        assert reasons == ()
        assert (parity.worst, parity.agreement, parity.pictures) == (0, 1, PICTURES)


def test_what_rounding_does_passes_in_reduced_precision_and_not_as_fp32(plain):
    rounded = plain * (1 + np.random.default_rng(2).normal(scale=0.01, size=plain.shape))
    assert judge(plain, rounded)[1] == ()
    assert "a score differs by" in judge(plain, rounded, "fp32")[1][0]


def test_an_answer_flips_where_the_model_was_not_sure(plain):
    """Two classes that are almost equal may change places: that is not the variant's mistake."""
    order = np.argsort(plain, axis=1)
    rows = np.arange(PICTURES)
    best, second = order[:, -1], order[:, -2]
    close = plain[rows, best] - plain[rows, second] < DECIDED_MARGIN
    assert close.sum() > 10
    flipped = plain.copy()
    flipped[rows[close], best[close]] = plain[rows[close], second[close]] - 0.001
    parity, reasons = judge(plain, flipped)
    assert (parity.agreement, reasons) == (1, ())


@pytest.mark.parametrize("wrong", [0.02, 0.2, 1.0])
def test_wrong_answers_are_refused_however_few(plain, wrong):
    """2 % of the decided pictures is slightly wrong, all of them grossly."""
    lying = plain.copy()
    margin = np.sort(plain, axis=1)[:, -1] - np.sort(plain, axis=1)[:, -2]
    decided = np.flatnonzero(margin > DECIDED_MARGIN)
    chosen = decided[: int(np.ceil(wrong * len(decided)))]
    lying[chosen] = np.roll(lying[chosen], 1, axis=1)
    parity, reasons = judge(plain, lying)
    assert parity.agreement == pytest.approx(1 - wrong, abs=0.01)
    assert any("the answer is equal on" in reason for reason in reasons)


def test_a_systematic_shift_is_refused_though_every_answer_stays(plain):
    flat = 0.85 * plain + 0.015
    parity, reasons = judge(plain, flat)
    assert parity.agreement == 1
    assert len(reasons) == 1
    assert "in the mean" in reasons[0]


def test_scores_that_are_no_numbers_are_refused(plain):
    broken = plain.copy()
    broken[7, 3] = np.nan
    for precision in ("fp32", "bf16"):
        assert judge(plain, broken, precision)[1]


def test_few_pictures_prove_nothing(plain):
    assert "prove nothing" in judge(plain[:100], plain[:100])[1][0]
    undecided = np.full_like(plain, 0.1)
    assert "0 of them decided" in judge(undecided, undecided)[1][0]
    assert judge(plain[:16], plain[:16], "fp32")[1] == ()
    assert "15 pictures prove nothing" in judge(plain[:15], plain[:15], "fp32")[1][0]


def test_multi_label_answers_are_compared_label_by_label():
    generator = np.random.default_rng(3)
    plain = generator.uniform(size=(PICTURES, 4)).astype(np.float32)
    parity, reasons = judge(plain, plain.copy(), kind="multi")
    assert parity.decided > PICTURES
    assert reasons == ()
    flipped = np.where(np.abs(plain - 0.6) < 0.03, plain - 0.2, plain)
    parity, reasons = judge(plain, flipped, kind="multi")
    assert parity.agreement < 0.97
    assert reasons


def test_a_single_class_is_always_decided():
    plain = np.ones((PICTURES, 1), np.float32)
    assert judge(plain, plain.copy())[0].decided == PICTURES


def test_shapes_must_agree(plain):
    with pytest.raises(ValueError, match="against"):
        compare(plain, plain[:5], kind="single", threshold=0.5)
