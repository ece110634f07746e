"""References: the ways to say where an image is.

https://host/path      fetched by the worker, through the address policy
s3://bucket/key        read by the worker from object storage; `?versionId=…` at the end names a version
file:///folder/name    read by the worker, only below its `FILE_ROOTS`
data:[type];base64,…   the image itself
blob:<sha256>          the image itself, parked in Redis by a producer (claim check; never typed by a person)
claim:<sha256>         the same, parked in the object store that the setting `claim_store` names
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from classifleet.config.errors import ErrorCode, ImageError

Scheme = Literal["http", "https", "s3", "file", "data", "blob", "claim"]

MAX_REFERENCE_CHARS: Final = 8192  # everything but data:, which has its own cap in bytes
PARKED_SCHEMES: Final = ("blob:", "claim:")  # a person's reference never has one
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA256_CHARS: Final = 64
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_VERSION = re.compile(r"(.*)\?versionId=(.*)", re.DOTALL)
_VERSION_ID = re.compile(r"[A-Za-z0-9._~+/=-]{1,1024}")
_CREDENTIALS = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*:/*)?[^/]*@")
_REDACTED_QUERY = "?redacted"


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference with its scheme checked and its parts taken apart.

    Attributes:
        scheme: How to read it.
        text: The reference as given.
        location: What the scheme's reader needs: the URL, the key, the path, a parked image's sha256, the data.
        bucket: The bucket, for `s3` alone.
        version: The version of the object, for `s3` alone; empty for the latest.
    """

    scheme: Scheme
    text: str
    location: str
    bucket: str = ""
    version: str = ""


def parse_reference(text: str) -> Reference:
    """Take a reference apart.

    Raises:
        ImageError: `invalid_reference`, saying what is wrong with it.
    """
    match = _SCHEME.match(text)
    if match is None:
        raise _invalid(f"{_shorten(text)} has no scheme: use https://, s3://, file:// or data:")
    scheme = match[1].lower()
    rest = text[match.end() :]
    if scheme == "data":
        return Reference("data", text, rest)
    if len(text) > MAX_REFERENCE_CHARS:
        raise _invalid(f"the reference has {len(text)} characters; at most {MAX_REFERENCE_CHARS} are accepted")
    match scheme:
        case "http" | "https":
            return _parse_http(text, "https" if scheme == "https" else "http")
        case "s3":
            return _parse_s3(text, rest)
        case "file":
            return _parse_file(text, rest)
        case "blob" | "claim":
            if not _SHA256.fullmatch(rest):
                raise _invalid(f"a {scheme}: reference names a sha256")
            return Reference("blob" if scheme == "blob" else "claim", text, rest)
    raise _invalid(f"the scheme {scheme!r} is not one of https, http, s3, file, data")


def _parse_http(text: str, scheme: Literal["http", "https"]) -> Reference:
    if _CONTROL.search(text) or "\\" in text:
        raise _invalid("a URL has no spaces, control characters or backslashes: percent-encode them")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise _invalid(f"not a URL: {error}") from None
    if not host:
        raise _invalid("the URL has no host")
    if parts.username is not None or parts.password is not None:
        raise _invalid("the URL carries credentials; use a signed URL or an s3:// reference")
    return Reference(scheme, text, text)


def _parse_s3(text: str, rest: str) -> Reference:
    bucket, _, key = rest.removeprefix("//").partition("/")
    if not rest.startswith("//") or not bucket or not key:
        raise _invalid(f"{_shorten(text)} is not s3://bucket/key")
    version = ""
    if match := _VERSION.fullmatch(key):  # a key that itself ends so cannot be named
        key, version = match[1], match[2]
        if not key or not _VERSION_ID.fullmatch(version):
            raise _invalid(f"{_shorten(text)} is not s3://bucket/key?versionId=id")
    if "\x00" in key:
        raise _invalid("the key has a NUL character")
    return Reference("s3", text, key, bucket, version)


def _parse_file(text: str, rest: str) -> Reference:
    host, slash, path = rest.removeprefix("//").partition("/")
    if not rest.startswith("//") or host not in ("", "localhost") or not slash:
        raise _invalid(f"{_shorten(text)} is not file:///absolute/path")
    decoded = unquote(slash + path)
    if "\x00" in decoded:
        raise _invalid("the path has a NUL character")
    return Reference("file", text, decoded)


def decode_data_uri(rest: str, *, max_bytes: int) -> bytes:
    """The bytes of a `data:` reference (what follows the colon), its size checked before it is decoded.

    Standard and URL-safe base64, with or without padding; percent-encoding when it is not base64.

    Raises:
        ImageError: `invalid_reference` or `too_large`.
    """
    header, comma, body = rest.partition(",")
    if not comma:
        raise _invalid("a data: reference is data:[type][;base64],… and this one has no comma")
    if not header.lower().endswith(";base64"):
        # Percent-encoding never shrinks, so the text's length bounds the bytes from above.
        if len(body) > 3 * max_bytes:
            raise _too_large(len(body) // 3, max_bytes)
        try:
            return _within(unquote_to_bytes(body), max_bytes)
        except UnicodeEncodeError as error:
            raise _invalid(f"the data: reference is not text: {error.reason}") from None
    if len(body) > 4 * max_bytes + 4:  # no base64 of an image within the cap is longer, even percent-encoded
        raise _too_large(len(body) // 4, max_bytes)
    text = unquote(body) if "%" in body else body
    text = text.translate(_URL_SAFE).rstrip("=")
    if len(text) * 3 // 4 > max_bytes:
        raise _too_large(len(text) * 3 // 4, max_bytes)
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid(f"the data: reference is not base64: {error}") from None
    return _within(data, max_bytes)


_URL_SAFE: Final = str.maketrans("-_", "+/", " \t\r\n")


def _within(data: bytes, max_bytes: int) -> bytes:
    if not data:
        raise _invalid("the data: reference is empty")
    if len(data) > max_bytes:
        raise _too_large(len(data), max_bytes)
    return data


def _too_large(size: int, max_bytes: int) -> ImageError:
    return ImageError(ErrorCode.TOO_LARGE, f"the image has {size} bytes or more; at most {max_bytes} are read")


def data_reference(data: bytes) -> str:
    """Bytes as a `data:` reference."""
    return "data:;base64," + base64.b64encode(data).decode("ascii")


def redact(text: str) -> str:
    """The reference as it may stand in records and logs: no query string, no credentials, no image bytes."""
    scheme = text.partition(":")[0].lower()
    if scheme == "data":
        return f"data:;sha256={hashlib.sha256(_data_bytes(text)).hexdigest()}"
    if scheme in ("blob", "claim"):
        return f"data:;sha256={text.partition(':')[2][:_SHA256_CHARS]}"
    if scheme in ("s3", "file"):
        return text[:MAX_REFERENCE_CHARS]
    return _redact_url(text)  # whatever it is, it may carry a signature


def _data_bytes(text: str) -> bytes:
    try:
        return decode_data_uri(text[5:], max_bytes=len(text))
    except ImageError:
        return text.encode("utf-8", "surrogatepass")


def _redact_url(text: str) -> str:
    base, question, _ = text.partition("#")[0].partition("?")
    return (_CREDENTIALS.sub(r"\1", base) + (_REDACTED_QUERY if question else ""))[:MAX_REFERENCE_CHARS]


def _shorten(text: str, limit: int = 80) -> str:
    text = redact(text)
    return repr(text if len(text) <= limit else text[:limit] + "…")


def _invalid(message: str) -> ImageError:
    return ImageError(ErrorCode.INVALID_REFERENCE, message)
