"""Images from object storage, through boto3, which is imported when the first one is asked for."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

from classifleet.config.errors import ErrorCode, ImageError, MissingExtra, SettingsError, StorageError
from classifleet.config.reference import Reference
from classifleet.config.settings import Settings
from classifleet.config.storage import s3_client

READ_BYTES: Final = 256 << 10

# No ARNs, which name endpoints of their own, and nothing that a path-style URL would read as another path.
_BUCKET: Final = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", re.ASCII)
_DOTS: Final = frozenset({".", ".."})

_CODES: Final = {
    "NoSuchKey": ErrorCode.NOT_FOUND,
    "NoSuchBucket": ErrorCode.NOT_FOUND,
    "NoSuchVersion": ErrorCode.NOT_FOUND,
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
    408: ErrorCode.FETCH_TIMEOUT,
    504: ErrorCode.FETCH_TIMEOUT,
}


class S3Reader:
    """Reads objects of the buckets and prefixes that the operator opened. Safe across threads.

    Args:
        settings: Endpoint, allow-list and limits.

    Raises:
        SettingsError: An entry of `source_allow` is not `s3://bucket/prefix`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._allowed = _prefixes(settings.source_allow)
        self._lock = threading.Lock()
        self._client: Any = None

    def require_allowed(self, reference: Reference) -> None:
        """Check a reference without asking anyone.

        Raises:
            ImageError: `invalid_reference` or `forbidden_source`.
        """
        bucket, key = reference.bucket, reference.location
        if not _BUCKET.fullmatch(bucket):
            raise ImageError(ErrorCode.INVALID_REFERENCE, "the bucket's name is not one that a bucket can have")
        if _DOTS & set(key.split("/")):  # a server that tidies paths would read elsewhere than was checked
            raise ImageError(ErrorCode.INVALID_REFERENCE, "the key has a segment . or .., which not all stores accept")
        if self._allowed and not any(_covers(prefix, bucket, key) for prefix in self._allowed):
            raise ImageError(
                ErrorCode.FORBIDDEN_SOURCE, f"s3://{bucket}/… is not below what the setting source_allow names"
            )

    def read(self, reference: Reference, *, expires_at: float) -> bytes:
        """Read an object. Blocks, in a thread of the caller's.

        Args:
            reference: Of the scheme `s3`.
            expires_at: Time of `time.monotonic()` after which reading stops.

        Raises:
            ImageError: Whatever went wrong.
        """
        self.require_allowed(reference)
        client = self._open()
        from botocore.exceptions import BotoCoreError, ClientError
        from urllib3.exceptions import HTTPError

        try:
            answer = client.get_object(Bucket=reference.bucket, Key=reference.location)
            return self._stream(answer, expires_at)
        except ClientError as error:
            raise _refusal(error) from error
        except (BotoCoreError, HTTPError, OSError) as error:
            raise _failure(error) from error

    def close(self) -> None:
        """Close the connections; a read under way ends on its own."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _open(self) -> Any:
        with self._lock:
            if self._client is None:
                try:
                    self._client = s3_client(self._settings)
                except (StorageError, MissingExtra) as error:
                    raise ImageError(ErrorCode.FETCH_FAILED, str(error)) from error
            return self._client

    def _stream(self, answer: Any, expires_at: float) -> bytes:
        body = answer["Body"]
        try:
            self._require_size(answer.get("ContentLength") or 0)
            data = bytearray()
            while part := body.read(READ_BYTES):
                data += part
                self._require_size(len(data))
                if time.monotonic() >= expires_at:
                    raise ImageError(ErrorCode.FETCH_TIMEOUT, "the object did not arrive in time")
            return bytes(data)
        finally:
            body.close()

    def _require_size(self, size: int) -> None:
        limit = self._settings.max_bytes
        if size > limit:
            raise ImageError(ErrorCode.TOO_LARGE, f"the object has {size} bytes or more; at most {limit} are read")


def _prefixes(entries: Iterable[str]) -> list[tuple[str, str]]:
    prefixes = []
    for entry in entries:
        bucket, _, prefix = entry.removeprefix("s3://").partition("/")
        if not entry.startswith("s3://") or not _BUCKET.fullmatch(bucket):
            raise SettingsError(f"source_allow: {entry!r} is not s3://bucket or s3://bucket/prefix")
        prefixes.append((bucket, prefix))
    return prefixes


def _covers(allowed: tuple[str, str], bucket: str, key: str) -> bool:
    """Whether a key lies below an allowed prefix; `public` covers `public/a` and not `public-not/a`."""
    allowed_bucket, prefix = allowed
    folder = prefix if not prefix or prefix.endswith("/") else prefix + "/"
    return bucket == allowed_bucket and (key == prefix or key.startswith(folder))


def _refusal(error: Any) -> ImageError:
    """What an answer of the store means; its message is left out, since it may quote signatures."""
    name = str(error.response.get("Error", {}).get("Code", "")) or "no code"
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = _CODES.get(name) or _STATUSES.get(status, ErrorCode.FETCH_FAILED)
    return ImageError(code, f"the object store answered {status} ({name})")


def _failure(error: Exception) -> ImageError:
    """What it means that the store did not answer."""
    from botocore import exceptions
    from urllib3.exceptions import TimeoutError as Urllib3Timeout

    if isinstance(error, (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError, Urllib3Timeout, TimeoutError)):
        return ImageError(ErrorCode.FETCH_TIMEOUT, "the object store did not answer in time")
    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return ImageError(ErrorCode.ACCESS_DENIED, "the worker has no credentials for the object store")
    if isinstance(error, exceptions.ParamValidationError):
        return ImageError(ErrorCode.INVALID_REFERENCE, "the bucket or the key is not one that S3 accepts")
    return ImageError(ErrorCode.FETCH_FAILED, f"the object store failed: {type(error).__name__}")
