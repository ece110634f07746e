"""Payload v1: what is accepted, what is refused and how it is said, and the digest that identifies a request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from classifleet.config import InvalidRequest, Payload, make_payload, message
from classifleet.config.payload import (
    MAX_CHUNK_ITEMS,
    MAX_ID_CHARS,
    MAX_META_CHARS,
    MAX_META_ITEMS,
    check_job_id,
    explain,
)

ITEM = {"id": "a", "ref": "https://example.com/a.jpg"}


def payload(**fields: Any) -> Payload:
    return make_payload(**{"job": "job-1", "chunk": "0", "items": [ITEM], "models": ["imagenet"], **fields})


FULL = {
    "v": 1,
    "job": "job-1",
    "chunk": "7",
    "items": [{"id": "a/b.jpg", "ref": "s3://bucket/a b.jpg", "meta": {"user": "42"}}],
    "models": ["imagenet@2", "nsfw"],
    "options": {"top_k": 3, "scores": "all", "threshold": 0.25},
    "deadline_seconds": 12.5,
    "sink": "s3://bucket/out",
}


def test_what_is_encoded_is_the_contract_and_comes_back() -> None:
    made = make_payload(**FULL)
    assert json.loads(made.encode()) == FULL
    assert Payload.model_validate_json(made.encode()) == made


def test_defaults_and_absent_fields() -> None:
    assert json.loads(payload().encode()) == {
        "v": 1,
        "job": "job-1",
        "chunk": "0",
        "items": [ITEM],
        "models": ["imagenet"],
        "options": {"top_k": 5, "scores": "top"},
    }


@pytest.mark.parametrize("text", ["käse.jpg", "日本", "a\nb", "\u0000", "🐈", " "])
def test_ids_are_any_text(text: str) -> None:
    made = payload(items=[{**ITEM, "id": text, "meta": {text: text}}])
    assert Payload.model_validate_json(made.encode()).items[0].id == text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"items": []}, "items: "),
        ({"items": [{**ITEM, "id": str(i)} for i in range(MAX_CHUNK_ITEMS + 1)]}, "items: "),
        ({"items": [ITEM, ITEM]}, "items: the id 'a' is given to two images"),
        ({"items": [{**ITEM, "id": ""}]}, "items.0.id: "),
        ({"items": [{**ITEM, "id": "x" * (MAX_ID_CHARS + 1)}]}, "items.0.id: "),
        ({"items": [{**ITEM, "id": 7}]}, "items.0.id: "),
        ({"items": [{"id": "a"}]}, "items.0.ref: "),
        ({"items": [{**ITEM, "meta": {str(i): "" for i in range(MAX_META_ITEMS + 1)}}]}, "items.0.meta: "),
        ({"items": [{**ITEM, "meta": {"a": "x" * (MAX_META_CHARS + 1)}}]}, "items.0.meta.a: "),
        ({"items": [{**ITEM, "meta": {"a": 1}}]}, "items.0.meta.a: "),
        ({"items": [{**ITEM, "mime": "x"}]}, "items.0.mime: Extra inputs"),
        ({"models": []}, "models: "),
        ({"models": ["a"] * 17}, "models: "),
        ({"models": ["ImageNet"]}, "models.0: "),
        ({"models": ["imagenet@0"]}, "models.0: "),
        ({"models": ["imagenet@latest"]}, "models.0: "),
        ({"models": ["../etc"]}, "models.0: "),
        ({"models": ["a\n"]}, "models.0: "),
        ({"options": {"top_k": 0}}, "options.top_k: "),
        ({"options": {"top_k": 10_001}}, "options.top_k: "),
        ({"options": {"scores": "some"}}, "options.scores: "),
        ({"options": {"threshold": 1.5}}, "options.threshold: "),
        ({"options": {"threshold": float("nan")}}, "options.threshold: "),
        ({"deadline_seconds": 0}, "deadline_seconds: "),
        ({"deadline_seconds": float("inf")}, "deadline_seconds: "),
        ({"v": 2}, "v: "),
        ({"priority": 1}, "priority: Extra inputs"),
    ],
)
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        payload(**fields)
    assert str(caught.value).startswith(message)


def test_limits_are_inclusive() -> None:
    items = [{"id": str(i).rjust(MAX_ID_CHARS, "x"), "ref": "s3://b/k"} for i in range(MAX_CHUNK_ITEMS)]
    assert len(payload(items=items).items) == MAX_CHUNK_ITEMS
    meta = {str(i).rjust(MAX_META_CHARS, "x"): "y" * MAX_META_CHARS for i in range(MAX_META_ITEMS)}
    assert payload(items=[{**ITEM, "meta": meta}]).items[0].meta == meta


def test_a_payload_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        payload().job = "other"  # type: ignore[misc]


def test_all_errors_are_explained() -> None:
    with pytest.raises(ValidationError) as caught:
        Payload.model_validate({"v": 1, "chunk": "0", "items": "no", "models": ["a"]})
    assert explain(caught.value) == "job: Field required; items: Input should be a valid list"


def test_the_digest_is_short_hexadecimal_as_the_ledger_needs_it() -> None:
    assert len(payload().digest()) == 16
    assert int(payload().digest(), 16) >= 0


@pytest.mark.parametrize(
    "change",
    [
        {"items": [{**ITEM, "ref": "https://example.com/b.jpg"}]},
        {"items": [{**ITEM, "id": "b"}]},
        {"items": [{**ITEM, "meta": {"a": "b"}}]},
        {"models": ["nsfw"]},
        {"models": ["imagenet@1"]},
        {"options": {"top_k": 6}},
        {"options": {"scores": "all"}},
        {"options": {"threshold": 0.0}},
        {"sink": "s3://b/p"},
        {"job": "job-2"},
        {"chunk": "1"},
    ],
)
def test_a_different_request_has_a_different_digest(change: dict[str, Any]) -> None:
    assert payload(**change).digest() != payload().digest()


def test_the_same_request_has_the_same_digest_whenever_it_is_repeated() -> None:
    assert payload(deadline_seconds=10).digest() == payload(deadline_seconds=9).digest() == payload().digest()
    assert payload(options={"top_k": 5}).digest() == payload().digest()


@pytest.mark.parametrize("job", ["a", "A-1._b", "0", "x" * 128])
def test_job_ids(job: str) -> None:
    assert check_job_id(job) == job


@pytest.mark.parametrize("job", ["", "-a", ".a", "_a", "a/b", "a:b", "a b", "a\n", "é", "x" * 129, "..", "a{b}"])
def test_job_ids_that_would_break_a_key_or_a_path(job: str) -> None:
    with pytest.raises(InvalidRequest, match=r"the job id .* is not valid"):
        check_job_id(job)


def test_the_message_carries_only_a_name() -> None:
    assert message("j", "c") == {"v": 1, "job": "j", "chunk": "c"}
