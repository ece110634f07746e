"""What both sides of a fleet agree on: settings, the wire contract, error codes, Redis keys."""

from classifleet.config.errors import (
    CODES,
    BrokerUnavailable,
    ClassifleetError,
    CodeSpec,
    ErrorCode,
    FormatError,
    IdConflict,
    ImageError,
    InvalidRequest,
    JobAbandoned,
    LedgerFull,
    LedgerUnavailable,
    MissingExtra,
    ModelError,
    NotReplicated,
    QueueFull,
    ResultExpired,
    ResultTimeout,
    SettingsError,
    StorageError,
    StorageUnavailable,
    Unavailable,
    UnknownJob,
)
from classifleet.config.keys import KEY_TABLE, SCHEMA_VERSION, Keys
from classifleet.config.payload import Item, Lane, Message, Options, Payload, make_payload, message
from classifleet.config.record import ErrorInfo, ImageInfo, ModelAnswer, Prediction, Record, Timings
from classifleet.config.reference import Reference, data_reference, parse_reference, redact
from classifleet.config.settings import Settings, queue_name
from classifleet.config.urls import mask_url

__all__ = [  # noqa: RUF022 - grouped by noun
    # settings
    "Settings", "mask_url", "queue_name",
    # wire contract
    "Item", "Lane", "Message", "Options", "Payload", "make_payload", "message",
    "ErrorInfo", "ImageInfo", "ModelAnswer", "Prediction", "Record", "Timings",
    "Reference", "data_reference", "parse_reference", "redact",
    # Redis keys
    "KEY_TABLE", "SCHEMA_VERSION", "Keys",
    # errors
    "CODES", "BrokerUnavailable", "ClassifleetError", "CodeSpec", "ErrorCode", "FormatError", "IdConflict",
    "ImageError", "InvalidRequest", "JobAbandoned", "LedgerFull", "LedgerUnavailable", "MissingExtra", "ModelError",
    "NotReplicated", "QueueFull", "ResultExpired", "ResultTimeout", "SettingsError", "StorageError",
    "StorageUnavailable", "Unavailable", "UnknownJob",
]  # fmt: skip
