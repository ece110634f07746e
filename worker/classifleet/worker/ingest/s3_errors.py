"""What a failure of an object store means. Messages of stores are left out: they may quote signatures."""

from __future__ import annotations

import re
from typing import Final

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.ingest.retry import TransientError

_CODES: Final = {
    "NoSuchKey": ErrorCode.NOT_FOUND,
    "NoSuchBucket": ErrorCode.NOT_FOUND,
    "NoSuchVersion": ErrorCode.NOT_FOUND,
    "MethodNotAllowed": ErrorCode.NOT_FOUND,  # the version is a delete marker
    "AccessDenied": ErrorCode.ACCESS_DENIED,
    "ExpiredToken": ErrorCode.ACCESS_DENIED,
    "InvalidAccessKeyId": ErrorCode.ACCESS_DENIED,
    "InvalidToken": ErrorCode.ACCESS_DENIED,
    "SignatureDoesNotMatch": ErrorCode.ACCESS_DENIED,
    "InvalidBucketName": ErrorCode.INVALID_REFERENCE,
    "KeyTooLongError": ErrorCode.INVALID_REFERENCE,
    "RequestTimeout": ErrorCode.FETCH_TIMEOUT,
    # An archived object answers 403, and the worker's credentials are not to blame.
    "InvalidObjectState": ErrorCode.FETCH_FAILED,
    "RequestTimeTooSkewed": ErrorCode.FETCH_FAILED,
}
_STATUSES: Final = {
    401: ErrorCode.ACCESS_DENIED,
    403: ErrorCode.ACCESS_DENIED,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.NOT_FOUND,
    408: ErrorCode.FETCH_TIMEOUT,
    504: ErrorCode.FETCH_TIMEOUT,
}
# A store says "slow down" and "try again" in more words than a web server does; all of S3's 5xx are among them.
_PASSING: Final = frozenset(
    {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"}
)
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9.]{0,63}", re.ASCII)


def refusal(status: int, name: str) -> ImageError:
    """What an answer of the store means.

    Args:
        status: HTTP status.
        name: The store's code, such as `NoSuchKey`; empty if it gave none.
    """
    name = name if _NAME.fullmatch(name) else "no code"
    code = _CODES.get(name) or _STATUSES.get(status, ErrorCode.FETCH_FAILED)
    message = f"the object store answered {status} ({name})"
    if status == _TOO_MANY or status >= _SERVER_ERROR or name in _PASSING:
        return TransientError(message, code=code)
    return ImageError(code, message)


def no_answer(kind: str) -> ImageError:
    """The store could not be reached, or broke off; `kind` names the client's error."""
    return TransientError(f"the object store failed: {kind}")


def timed_out() -> ImageError:
    """The store did not answer in time."""
    return TransientError("the object store did not answer in time", code=ErrorCode.FETCH_TIMEOUT)


def no_credentials() -> ImageError:
    """The usual chain has none."""
    return ImageError(ErrorCode.ACCESS_DENIED, "the worker has no credentials for the object store")


def not_a_key() -> ImageError:
    """S3 has no such bucket names or keys."""
    return ImageError(ErrorCode.INVALID_REFERENCE, "the bucket or the key is not one that S3 accepts")


def too_large(size: int, max_bytes: int) -> ImageError:
    """The object has too many bytes."""
    return ImageError(ErrorCode.TOO_LARGE, f"the object has {size} bytes or more; at most {max_bytes} are read")
