"""Helpers of the test suite: waiting for a condition, and the real servers that tests run against."""

from tests.support.processes import ManagedProcess
from tests.support.services import RedisServer, S3Server, redis_executable, require_service, s3_executable
from tests.support.waiting import wait_until, wait_until_async

__all__ = [
    "ManagedProcess",
    "RedisServer",
    "S3Server",
    "redis_executable",
    "require_service",
    "s3_executable",
    "wait_until",
    "wait_until_async",
]
