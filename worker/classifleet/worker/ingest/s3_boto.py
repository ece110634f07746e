"""Objects through boto3: every S3 there is, at 1.6 ms of CPU an object, each in a thread.

A thread is not held much longer than the deadline: a store that sends nothing is given up after a few seconds, and
one that drips is cut off by shutting its connection down from outside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from classifleet.config.errors import ErrorCode, ImageError, MissingExtra
from classifleet.config.reference import Reference
from classifleet.config.settings import Settings
from classifleet.worker.ingest import s3_errors

READ_BYTES: Final = 256 << 10
IDLE_SECONDS: Final = 5.0  # a store that sends nothing for so long hangs
THREADS: Final = 64


def make_client(settings: Settings) -> tuple[Any, Any, bool]:
    """A client that asks once; region, endpoint and credentials come from the usual chain.

    Returns:
        The session, the client, and whether the store's certificates are checked against a private CA.

    Raises:
        ImageError: There can be none.
    """
    try:
        import boto3
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise ImageError(ErrorCode.FETCH_FAILED, str(MissingExtra("s3", "an s3:// reference"))) from None
    config = Config(
        connect_timeout=min(settings.connect_timeout_seconds, IDLE_SECONDS),
        read_timeout=min(settings.fetch_timeout_seconds, IDLE_SECONDS),
        max_pool_connections=THREADS,
        retries={"mode": "standard", "total_max_attempts": 1},  # `with_retries` knows the deadline, botocore does not
        s3={"addressing_style": "path"} if settings.s3_path_style else None,  # else as the AWS configuration says
    )
    try:
        core = botocore.session.Session()
        session = boto3.session.Session(botocore_session=core)
        region = session.region_name or "us-east-1"
        client = session.client("s3", endpoint_url=settings.s3_endpoint_url, region_name=region, config=config)
        private_ca = bool(core.get_config_variable("ca_bundle")) and client.meta.endpoint_url.startswith("https:")
        return session, client, private_ca
    except (BotoCoreError, ValueError) as error:
        raise ImageError(ErrorCode.FETCH_FAILED, f"no S3 client: {error}") from error


class BotoCall:
    """One read of one object, in a thread.

    Args:
        client: From `make_client`.
        reference: Of the scheme `s3`.
        max_bytes: Of the object, at most.
        charge: Called with bytes that are about to be held; waits until there is room.
    """

    def __init__(self, client: Any, reference: Reference, *, max_bytes: int, charge: Callable[[int], None]) -> None:
        self._client = client
        self._reference = reference
        self._max_bytes = max_bytes
        self._charge = charge
        self._lock = threading.Lock()
        self._raw: Any = None
        self._given_up = False

    def read(self) -> bytes:
        """The object. Blocks.

        Raises:
            ImageError: Whatever went wrong.
        """
        from botocore.exceptions import BotoCoreError, ClientError
        from urllib3.exceptions import HTTPError

        where = {"Bucket": self._reference.bucket, "Key": self._reference.location}
        if self._reference.version:
            where["VersionId"] = self._reference.version
        try:
            return self._stream(self._client.get_object(**where))
        except ClientError as error:
            answer = error.response
            status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            raise s3_errors.refusal(status, str(answer.get("Error", {}).get("Code", ""))) from error
        except UnicodeError:
            raise s3_errors.not_a_key() from None
        except (BotoCoreError, HTTPError, OSError, ValueError) as error:
            raise s3_errors.timed_out() if self._given_up else _failure(error) from error

    def give_up(self) -> None:
        """End a read that is under way; from another thread."""
        with self._lock:
            self._given_up, raw = True, self._raw
        if raw is not None:
            with suppress(OSError, ValueError, RuntimeError):  # it has ended by itself meanwhile
                raw.shutdown()

    def _stream(self, answer: Any) -> bytes:
        body = answer["Body"]
        try:
            with self._lock:
                self._raw = getattr(body, "_raw_stream", None)  # urllib3's response, which alone can be shut down
                if self._given_up:
                    raise s3_errors.timed_out()
            declared = int(answer.get("ContentLength") or 0)
            self._require_size(declared)
            self._charge(declared)
            data = bytearray()
            while part := body.read(READ_BYTES):
                self._require_size(len(data) + len(part))
                if len(data) + len(part) > declared:
                    self._charge(len(part))
                data += part
            return bytes(data)
        finally:
            with self._lock:
                self._raw = None
            body.close()

    def _require_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise s3_errors.too_large(size, self._max_bytes)


def _failure(error: Exception) -> ImageError:
    """What it means that the store did not answer."""
    from botocore import exceptions
    from urllib3.exceptions import TimeoutError as Urllib3Timeout

    if isinstance(error, (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError, Urllib3Timeout, TimeoutError)):
        return s3_errors.timed_out()
    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return s3_errors.no_credentials()
    if isinstance(error, exceptions.ParamValidationError):
        return s3_errors.not_a_key()
    return s3_errors.no_answer(type(error).__name__)
