from __future__ import annotations

import numpy as np
import pytest

from classifleet.config import ErrorCode, ImageError, Options
from classifleet.worker.answers import SORTED_AT_ONCE, answer, failed_answer

LABELS = ("ant", "bee", "cat", "dog")
SCORES = np.array([0.1, 0.2, 0.6, 0.1], np.float32)


def ask(values=SCORES, kind="single", **options):
    return answer(values, LABELS, digest="d", kind=kind, threshold=0.5, options=Options(**options))


def test_top_k_best_first_with_class_ids() -> None:
    got = ask(top_k=2)
    assert got["predictions"] == [
        {"class": "cat", "class_id": 2, "confidence": pytest.approx(0.6)},
        {"class": "bee", "class_id": 1, "confidence": pytest.approx(0.2)},
    ]
    assert (got["status"], got["top"], got["digest"], got["kind"]) == ("ok", "cat", "d", "single")
    assert got["confidence"] == pytest.approx(0.6)
    assert got["truncated"] is True
    assert "predicted_classes" not in got


def test_equal_scores_keep_the_order_of_the_classes() -> None:
    assert [p["class"] for p in ask(top_k=4)["predictions"]] == ["cat", "bee", "ant", "dog"]


@pytest.mark.parametrize("options", [{"scores": "all"}, {"top_k": 4}, {"top_k": 99}])
def test_every_class_is_not_truncated(options: dict[str, object]) -> None:
    got = ask(**options)
    assert len(got["predictions"]) == 4
    assert got["truncated"] is False


def test_threshold_leaves_out_and_truncates_but_keeps_the_top() -> None:
    got = ask(scores="all", threshold=0.15)
    assert [p["class"] for p in got["predictions"]] == ["cat", "bee"]
    assert got["truncated"] is True
    none = ask(threshold=0.9)
    assert none["predictions"] == []
    assert none["top"] == "cat"


def test_multi_label_predicts_every_class_at_or_above_the_threshold_best_first() -> None:
    scores = np.array([0.9, 0.5, 0.49, 0.95], np.float32)
    got = ask(scores, kind="multi", top_k=1)
    assert got["predicted_classes"] == ["dog", "ant", "bee"]
    stricter = ask(scores, kind="multi", threshold=0.92)
    assert stricter["predicted_classes"] == ["dog"]


def test_confidence_is_finite_json() -> None:
    assert isinstance(ask()["confidence"], float)


def test_failed_answer_carries_the_code() -> None:
    got = failed_answer(ImageError(ErrorCode.MODEL_FAILED, "why"))
    assert got == {"status": "error", "error": {"code": "model_failed", "message": "why", "retryable": False}}


@pytest.mark.parametrize("classes", [1, 2, SORTED_AT_ONCE, SORTED_AT_ONCE + 1, 1000])
def test_the_best_are_the_same_however_many_there_are_to_pick_from(classes: int) -> None:
    """Many scores are equal, also those of the last one that is wanted and of the first one that is not."""
    random = np.random.default_rng(classes)
    labels = [f"class-{n}" for n in range(classes)]
    for count in (1, 2, 5, classes):
        scores = (random.integers(0, 8, classes) / 8).astype(np.float32)
        got = answer(
            scores, labels, digest="d", kind="single", threshold=0.5, options=Options(top_k=min(count, classes))
        )
        expected = sorted(range(classes), key=lambda n: (-scores[n], n))[:count]
        assert [p["class_id"] for p in got["predictions"]] == expected
        assert (got["top"], got["confidence"]) == (labels[expected[0]], float(scores[expected[0]]))
