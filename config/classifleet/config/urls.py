"""URLs of brokers and of Redis, as each library writes them, and for people to read."""

from __future__ import annotations

import re


def is_redis(url: str) -> bool:
    """Whether the URL is of a Redis server that can hold the ledger."""
    return url.partition(":")[0] in ("redis", "rediss", "unix", "redis+socket")


def for_redis_py(url: str) -> str:
    """The URL of a Unix socket as redis-py writes it (`unix://path?db=1`)."""
    scheme, _, rest = url.partition("://")
    return "unix://" + rest.replace("virtual_host=", "db=") if scheme == "redis+socket" else url


def for_kombu(url: str) -> str:
    """The URL of a Unix socket as kombu writes it (`redis+socket://path?virtual_host=1`)."""
    scheme, _, rest = url.partition("://")
    return "redis+socket://" + rest.replace("db=", "virtual_host=") if scheme == "unix" else url


def mask_url(url: str) -> str:
    """The URL without its passwords, for people to read; also of malformed URLs and of lists of URLs."""
    masked = re.sub(r"(://[^:/@?#]*:).*@", r"\1***@", url)
    return re.sub(r"([?&](?:password|passwd|secret\w*|token)=)[^&]*", r"\1***", masked, flags=re.IGNORECASE)
