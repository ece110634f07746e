"""Enqueue images and read their results; importing it loads no torch, boto3, aiohttp, numpy or PIL."""

from classifleet.config import (
    BrokerUnavailable,
    ClassifleetError,
    ErrorCode,
    FormatError,
    IdConflict,
    ImageError,
    InvalidRequest,
    JobAbandoned,
    LedgerUnavailable,
    MissingExtra,
    NotReplicated,
    QueueFull,
    ResultExpired,
    ResultTimeout,
    Settings,
    SettingsError,
    StorageError,
    StorageUnavailable,
    Unavailable,
    UnknownJob,
)
from classifleet.ledger import QueueDepth
from classifleet.producer._dead_letters import Requeued
from classifleet.producer._flows import JobInfo, Progress
from classifleet.producer._letters import Attempt, DeadLetter
from classifleet.producer._request import Deadline, Ref, RequestOptions, SubmitItem
from classifleet.producer.async_fleet import AsyncFleet, AsyncHandle, AsyncJob
from classifleet.producer.fleet import Fleet, Handle, Job
from classifleet.producer.result import Result

__all__ = [  # noqa: RUF022 - grouped by noun
    # fleets
    "Fleet", "Handle", "Job", "AsyncFleet", "AsyncHandle", "AsyncJob", "Settings",
    # what goes in
    "Ref", "SubmitItem", "RequestOptions", "Deadline",
    # what comes out
    "Result", "Progress", "JobInfo", "QueueDepth", "ErrorCode", "DeadLetter", "Attempt", "Requeued",
    # errors
    "ClassifleetError", "InvalidRequest", "IdConflict", "SettingsError", "Unavailable", "BrokerUnavailable",
    "LedgerUnavailable", "NotReplicated", "StorageUnavailable", "QueueFull", "JobAbandoned", "UnknownJob",
    "ResultExpired", "ResultTimeout", "ImageError", "FormatError", "StorageError", "MissingExtra",
]  # fmt: skip
