"""References: taken apart, decoded within a cap, and redacted."""

from __future__ import annotations

import base64
import hashlib
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifleet.config import ErrorCode, ImageError, Reference, data_reference, parse_reference, redact
from classifleet.config.reference import MAX_REFERENCE_CHARS, decode_data_uri

PNG = b"\x89PNG\r\n\x1a\n\xff\xfe\xfd"


@pytest.mark.parametrize(
    ("text", "scheme", "location", "bucket"),
    [
        ("https://example.com/a.jpg?x=1#f", "https", "https://example.com/a.jpg?x=1#f", ""),
        ("HTTP://example.com", "http", "HTTP://example.com", ""),
        ("http://[::1]:8080/a", "http", "http://[::1]:8080/a", ""),
        ("https://食べ物.example/すし", "https", "https://食べ物.example/すし", ""),
        ("s3://bucket/key", "s3", "key", "bucket"),
        ("s3://bucket/a folder/k%20?#é", "s3", "a folder/k%20?#é", "bucket"),
        ("s3://bucket//k", "s3", "/k", "bucket"),
        ("file:///data/a%20b.jpg", "file", "/data/a b.jpg", ""),
        ("file://localhost/data/a", "file", "/data/a", ""),
        ("file:///data/a?b#c", "file", "/data/a?b#c", ""),
        ("data:image/png;base64,AAAA", "data", "image/png;base64,AAAA", ""),
        ("blob:" + "0a" * 32, "blob", "0a" * 32, ""),
        ("claim:" + "0a" * 32, "claim", "0a" * 32, ""),
    ],
)
def test_references_are_taken_apart(text: str, scheme: str, location: str, bucket: str) -> None:
    reference = parse_reference(text)
    assert reference == Reference(scheme, text, location, bucket)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no scheme"),
        ("a.jpg", "'a.jpg' has no scheme: use https://, s3://, file:// or data:"),
        ("//example.com/a", "has no scheme"),
        ("ftp://example.com/a", "the scheme 'ftp' is not one of"),
        ("javascript:alert(1)", "the scheme 'javascript' is not one of"),
        ("https:///a", "no host"),
        ("https:a", "no host"),
        ("https://user:pw@example.com/", "credentials"),
        ("https://user@example.com/", "credentials"),
        ("https://@example.com/", "credentials"),
        ("https://example.com:99999/", "not a URL"),
        ("https://example.com:x/", "not a URL"),
        ("https://[::1/", "not a URL"),
        ("https://example.com/a b", "no spaces"),
        (" https://example.com/a", "has no scheme"),
        ("https://example.com/a\r\nHost: x", "no spaces"),
        ("https://example.com\\@evil.com/", "backslashes"),
        ("https://example.com/\x7f", "control characters"),
        ("s3://bucket", "is not s3://bucket/key"),
        ("s3://bucket/", "is not s3://bucket/key"),
        ("s3:///key", "is not s3://bucket/key"),
        ("s3:bucket/key", "is not s3://bucket/key"),
        ("s3://bucket/a\x00b", "NUL"),
        ("file://host/a", "is not file:///absolute/path"),
        ("file:a", "is not file:///absolute/path"),
        ("file://", "is not file:///absolute/path"),
        ("file:///a%00b", "NUL"),
        ("blob:", "names a sha256"),
        ("claim:../" + "0a" * 32, "a claim: reference names a sha256"),
        ("blob:" + "0A" * 32, "names a sha256"),
        ("blob:" + "0a" * 32 + "\n", "names a sha256"),
        ("https://example.com/" + "a" * MAX_REFERENCE_CHARS, f"at most {MAX_REFERENCE_CHARS} are accepted"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(ImageError, match=re.escape(message)) as caught:
        parse_reference(text)
    assert caught.value.code is ErrorCode.INVALID_REFERENCE


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_an_invalid_one(text: str) -> None:
    redact(text)
    try:
        reference = parse_reference(text)
    except ImageError as caught:
        code: ErrorCode | None = caught.code
    else:
        code = None
        assert reference.text == text
    assert code in (None, ErrorCode.INVALID_REFERENCE)


@pytest.mark.parametrize("text", ["example.com/a?sig=hunter2", "ftp:?hunter2", "s3:///?", "https://u:hunter2@h/"])
def test_messages_hold_no_query_and_no_credentials(text: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse_reference(text)
    assert "hunter2" not in str(caught.value)


def test_a_long_reference_is_cut_in_its_message() -> None:
    with pytest.raises(ImageError) as caught:
        parse_reference("x" * 5000)
    assert len(str(caught.value)) < 200


STANDARD = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "body",
    [
        f"image/png;base64,{STANDARD}",
        f";base64,{STANDARD}",
        f"image/png;charset=x;BASE64,{STANDARD}",
        f";base64,{STANDARD.rstrip('=')}",
        f";base64,{base64.urlsafe_b64encode(PNG).decode()}",
        f";base64,{quote(STANDARD, safe='')}",
        f";base64,{STANDARD[:8]}\r\n {STANDARD[8:]}",
        f",{quote(PNG)}",
        f"image/png,{quote(PNG)}",
    ],
)
def test_data_is_decoded_however_it_is_written(body: str) -> None:
    assert decode_data_uri(body, max_bytes=len(PNG)) == PNG


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("image/png;base64", "has no comma"),
        (";base64,", "is empty"),
        (",", "is empty"),
        (";base64,A", "is not base64"),
        (";base64,AA=A", "is not base64"),
        (";base64,A!AA", "is not base64"),
        (";base64,ÄÄÄÄ", "is not base64"),
        (",\ud800", "is not text"),
    ],
)
def test_broken_data_is_an_invalid_reference(body: str, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        decode_data_uri(body, max_bytes=100)
    assert caught.value.code is ErrorCode.INVALID_REFERENCE


@pytest.mark.parametrize("size", [100, 101, 102, 103, 104, 10_000])
def test_the_cap_is_exact_in_bytes(size: int) -> None:
    text = data_reference(b"x" * size).removeprefix("data:")
    percent = "," + "%78" * size
    if size <= 100:
        assert len(decode_data_uri(text, max_bytes=100)) == len(decode_data_uri(percent, max_bytes=100)) == size
        return
    for body in (text, percent, "," + "x" * size):
        with pytest.raises(ImageError) as caught:
            decode_data_uri(body, max_bytes=100)
        assert caught.value.code is ErrorCode.TOO_LARGE


@given(st.binary(min_size=1, max_size=200))
def test_bytes_survive_the_round_trip(data: bytes) -> None:
    reference = parse_reference(data_reference(data))
    assert decode_data_uri(reference.location, max_bytes=len(data)) == data


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("https://example.com/a.jpg", "https://example.com/a.jpg"),
        ("https://example.com/a.jpg?X-Amz-Signature=s#f", "https://example.com/a.jpg?redacted"),
        ("https://example.com?s", "https://example.com?redacted"),
        ("https://example.com/a#f?s", "https://example.com/a"),
        ("https://u:p@example.com/a@2x.png", "https://example.com/a@2x.png"),
        ("https:u:p@example.com/a", "https:example.com/a"),
        ("HTTPS://u:p@ss@example.com/a", "HTTPS://example.com/a"),
        ("ftp://u:p@example.com/a?s", "ftp://example.com/a?redacted"),
        ("example.com/a?s", "example.com/a?redacted"),
        ("s3://bucket/a?b", "s3://bucket/a?b"),
        ("file:///data/a?b", "file:///data/a?b"),
        ("blob:" + "0a" * 32, "data:;sha256=" + "0a" * 32),
        ("claim:" + "0a" * 32, "data:;sha256=" + "0a" * 32),
        ("Claim:" + "0a" * 9999, "data:;sha256=" + "0a" * 32),
        (data_reference(PNG), "data:;sha256=" + hashlib.sha256(PNG).hexdigest()),
        ("data:," + quote(PNG), "data:;sha256=" + hashlib.sha256(PNG).hexdigest()),
        ("data:broken", "data:;sha256=" + hashlib.sha256(b"data:broken").hexdigest()),
        ("", ""),
    ],
)
def test_redaction(text: str, redacted: str) -> None:
    assert redact(text) == redacted
    assert redact(redact(text)) == redact(text) or text.lower().startswith(("data:", "blob:", "claim:"))


def test_redaction_bounds_the_length() -> None:
    for scheme in ("s3://b/", "https://h/", "x"):
        assert len(redact(scheme + "a" * 3 * MAX_REFERENCE_CHARS)) == MAX_REFERENCE_CHARS
