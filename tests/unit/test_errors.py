"""The closed set of error codes, and the exceptions: their tree, their default messages, their pickles."""

from __future__ import annotations

import pickle
import re
from http import HTTPStatus

import pytest

from classifleet.config import CODES, ErrorCode, ImageError, MissingExtra, QueueFull, errors
from classifleet.config.errors import ClassifleetError

CONTRACT = """
invalid_reference forbidden_address forbidden_source not_found access_denied too_large fetch_timeout fetch_failed
unsupported_format too_many_pixels undecodable model_not_found model_failed deadline_exceeded cancelled poison internal
"""
RETRYABLE = {"fetch_timeout", "fetch_failed", "deadline_exceeded", "cancelled", "internal"}


def exceptions() -> dict[str, type[ClassifleetError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, ClassifleetError)
    }


def test_the_codes_are_those_of_the_contract() -> None:
    assert [code.value for code in ErrorCode] == CONTRACT.split()
    assert list(CODES) == list(ErrorCode)
    assert {code.value for code in ErrorCode if code.spec.retryable} == RETRYABLE


@pytest.mark.parametrize("code", ErrorCode)
def test_each_code_has_one_meaning_and_a_status(code: ErrorCode) -> None:
    assert code.spec.meaning.endswith(".")
    assert 400 <= HTTPStatus(code.spec.http_status) < 600
    assert [other for other in ErrorCode if other.spec.meaning == code.spec.meaning] == [code]


@pytest.mark.parametrize("code", ErrorCode)
def test_an_image_error_becomes_the_record_of_its_code(code: ErrorCode) -> None:
    assert ImageError(code).as_info() == {
        "code": code.value,
        "message": code.spec.meaning,
        "retryable": code.spec.retryable,
    }
    assert ImageError(code, "why").as_info()["message"] == "why"


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    parents = ["ClassifleetError"]
    for line in errors.__doc__.splitlines():
        if match := re.match(r"    ([│ ]*)[├└]── (\w+)", line):
            depth = len(match[1]) // 4 + 1
            parents[depth:] = [match[2]]
            drawn[match[2]] = parents[depth - 1]
    coded = {name: error.__mro__[1].__name__ for name, error in exceptions().items() if name != "ClassifleetError"}
    assert drawn == coded


def test_the_docstring_names_the_builtin_parents() -> None:
    expected = {
        "InvalidRequest": ValueError,
        "ResultTimeout": TimeoutError,
        "MissingExtra": ImportError,
        "UnknownJob": LookupError,
        "ResultExpired": LookupError,
        "FormatError": ValueError,
        "ModelError": ValueError,
    }
    for name, parent in expected.items():
        assert issubclass(exceptions()[name], parent), name


@pytest.mark.parametrize("name", sorted(set(exceptions()) - {"ImageError", "MissingExtra"}))
def test_the_docstring_is_the_default_message(name: str) -> None:
    error = exceptions()[name]
    assert error.__doc__ is not None
    assert str(error()) == error.__doc__.strip()
    assert "\n" not in str(error())
    assert str(error("what happened")) == "what happened"


@pytest.mark.parametrize(
    "error",
    [
        *(exceptions()[name]("why") for name in sorted(set(exceptions()) - {"ImageError", "MissingExtra"})),
        ImageError(ErrorCode.POISON, "why"),
        QueueFull("full", retry_after_seconds=2.5),
        MissingExtra("worker", "the device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_a_pickle(error: ClassifleetError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_missing_extra_says_what_to_install() -> None:
    assert str(MissingExtra("s3", "an s3:// URL")) == (
        "an s3:// URL needs the extra [s3]: pip install 'classifleet[s3]'"
    )
