"""Every way a call can fail, and every way an image can fail.

An *image* that cannot be classified is a result: its record carries one of the closed `ErrorCode`s and no
exception is raised. A *call* that cannot be carried out raises a `ClassifleetError`::

    ClassifleetError
    ├── InvalidRequest        the arguments are wrong (also a ValueError)
    │   ├── IdConflict        the id is taken by a different request
    │   └── SettingsError     a setting is unknown or has a wrong value
    ├── Unavailable           something the call needs did not answer in time
    │   ├── BrokerUnavailable
    │   │   └── BrokerFull    its Redis is at its maxmemory (a producer does not see it: the chunk is published later)
    │   ├── LedgerUnavailable
    │   │   ├── LedgerFull    Redis is at its maxmemory (a producer's submission raises QueueFull for it)
    │   │   └── NotReplicated too few replicas have the write (setting `durability`)
    │   └── StorageUnavailable
    ├── QueueFull             a queue or Redis is at its limit; carries retry_after_seconds
    ├── JobAbandoned          the job was given up after its producer's long silence
    ├── UnknownJob            no job with that id (never was, or long gone)
    ├── ResultExpired         the job is known, its records have been deleted
    ├── ResultTimeout         not finished within the timeout (also a TimeoutError)
    ├── ImageError            why one image failed: inside a worker, and from Result.raise_for_error()
    ├── FormatError           the record lacks what a result format needs
    ├── StorageError          an object store or folder refused
    ├── ModelError            a model or its description is wrong
    └── MissingExtra          an optional dependency is not installed (also an ImportError)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from classifleet.config.record import ErrorInfo


class ErrorCode(StrEnum):
    """Why an image has no answer. The set is closed: a new meaning is a new schema version."""

    INVALID_REFERENCE = "invalid_reference"
    FORBIDDEN_ADDRESS = "forbidden_address"
    FORBIDDEN_SOURCE = "forbidden_source"
    NOT_FOUND = "not_found"
    ACCESS_DENIED = "access_denied"
    TOO_LARGE = "too_large"
    FETCH_TIMEOUT = "fetch_timeout"
    FETCH_FAILED = "fetch_failed"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TOO_MANY_PIXELS = "too_many_pixels"
    UNDECODABLE = "undecodable"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_FAILED = "model_failed"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    POISON = "poison"
    INTERNAL = "internal"

    @property
    def spec(self) -> CodeSpec:
        """What the code means, whether a retry can help, and its HTTP status."""
        return CODES[self]


@dataclass(frozen=True, slots=True)
class CodeSpec:
    """One row of the table of error codes (`docs/errors.md` is generated from it).

    A `dead_letter` is kept, to be looked at and tried again: the fault is not the caller's.
    """

    meaning: str
    retryable: bool
    http_status: int
    dead_letter: bool = False


CODES: Final = MappingProxyType(
    {
        ErrorCode.INVALID_REFERENCE: CodeSpec("The reference is not one that classifleet understands.", False, 400),
        ErrorCode.FORBIDDEN_ADDRESS: CodeSpec("The URL leads to an address that is not public.", False, 403),
        ErrorCode.FORBIDDEN_SOURCE: CodeSpec(
            "The scheme, bucket or folder is not on the worker's allow-list.", False, 403
        ),
        ErrorCode.NOT_FOUND: CodeSpec("There is nothing at the reference.", False, 404),
        ErrorCode.ACCESS_DENIED: CodeSpec("The store or server refused the worker's credentials.", False, 403),
        ErrorCode.TOO_LARGE: CodeSpec("The image has more bytes than the worker accepts.", False, 413),
        ErrorCode.FETCH_TIMEOUT: CodeSpec("The image did not arrive within its deadline.", True, 504),
        ErrorCode.FETCH_FAILED: CodeSpec("The server or store failed while the image was read.", True, 502),
        ErrorCode.UNSUPPORTED_FORMAT: CodeSpec("The bytes are not in an image format on the allow-list.", False, 415),
        ErrorCode.TOO_MANY_PIXELS: CodeSpec("The image has more pixels than the worker decodes.", False, 413),
        ErrorCode.UNDECODABLE: CodeSpec("The image is corrupt.", False, 422),
        ErrorCode.MODEL_NOT_FOUND: CodeSpec("The worker has no model of that name and version.", False, 404),
        ErrorCode.MODEL_FAILED: CodeSpec("The model raised an error, or gave no usable answer.", False, 500, True),
        ErrorCode.DEADLINE_EXCEEDED: CodeSpec("The deadline passed before the image was classified.", True, 504),
        ErrorCode.CANCELLED: CodeSpec("The job was cancelled before the image was classified.", True, 409),
        ErrorCode.POISON: CodeSpec("The image, alone in a process, killed it.", False, 422, True),
        ErrorCode.INTERNAL: CodeSpec(
            "A defect of classifleet, a sink that took no records for too long, or a chunk that too many workers have "
            "died of: the message says which.",
            True,
            500,
            True,
        ),
    }
)


class ClassifleetError(Exception):
    """Something went wrong in classifleet."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class InvalidRequest(ClassifleetError, ValueError):
    """The request is not valid."""


class IdConflict(InvalidRequest):
    """This id already belongs to a different request."""


class SettingsError(InvalidRequest):
    """A setting is unknown or has a wrong value."""


class Unavailable(ClassifleetError):
    """A service did not answer in time."""


class BrokerUnavailable(Unavailable):
    """The broker did not answer in time; repeating the call with the same id is harmless."""


class BrokerFull(BrokerUnavailable):
    """The broker's Redis is at its maxmemory and refused a message."""


class LedgerUnavailable(Unavailable):
    """The ledger's Redis did not answer in time; repeating the call with the same id is harmless."""


class LedgerFull(LedgerUnavailable):
    """The ledger's Redis is at its maxmemory and refused a write."""


class NotReplicated(LedgerUnavailable):
    """Too few replicas have what the ledger's Redis wrote; repeating the call with the same id is harmless."""


class StorageUnavailable(Unavailable):
    """The object store did not answer in time."""


class QueueFull(ClassifleetError):
    """The queue, or Redis, is at its limit."""

    def __init__(self, message: str = "", *, retry_after_seconds: float = 1.0) -> None:
        """`retry_after_seconds` (1 to 60) is an attribute, too: when there may be room again."""
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class JobAbandoned(ClassifleetError):
    """The job was given up after its producer's long silence; submit what it lacks as a new job."""


class UnknownJob(ClassifleetError, LookupError):
    """There is no job with this id."""


class ResultExpired(ClassifleetError, LookupError):
    """The records of this job were deleted when their time to live ended."""


class ResultTimeout(ClassifleetError, TimeoutError):
    """The result did not come within the timeout; the work goes on."""


class ImageError(ClassifleetError):
    """An image could not be classified; `code` says why.

    Inside a worker each stage raises it and the pipeline turns it into the image's record. Users meet it in
    `Result.raise_for_error()` alone.
    """

    def __init__(self, code: ErrorCode, message: str = "") -> None:
        super().__init__(message or code.spec.meaning)
        self.code = code

    def __reduce__(self) -> tuple[type[ImageError], tuple[ErrorCode, str]]:
        """Pickle with the code, which is not in `args`."""
        return (type(self), (self.code, str(self)))

    def as_info(self) -> ErrorInfo:
        """The error as it stands in a record."""
        return {"code": self.code.value, "message": str(self), "retryable": self.code.spec.retryable}


class FormatError(ClassifleetError, ValueError):
    """The record lacks what this result format needs."""


class StorageError(ClassifleetError):
    """An object store or folder refused the operation."""


class ModelError(ClassifleetError, ValueError):
    """A model, or the file that describes it, is wrong."""


class MissingExtra(ClassifleetError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, what: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs the extra [{extra}]: pip install 'classifleet[{extra}]'")

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        """Pickle by the constructor's arguments, not by the message."""
        return (type(self), (self.extra, str(self).split(" needs the extra", 1)[0]))
