"""What a server's answer, or the lack of one, means for an image. No message holds a URL: URLs hold signatures."""

from __future__ import annotations

import errno
import re
import ssl
from typing import Final
from urllib.parse import urljoin

import aiohttp

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.config.reference import parse_reference
from classifleet.worker.ingest.resolver import AddressRefused, LookupTimeout
from classifleet.worker.ingest.retry import RETRIED_STATUSES, HostTrouble, TransientError, retry_after_seconds
from classifleet.worker.ingest.wire import WireLimitExceeded

_ACCEPTED: Final = frozenset({200, 203})
_COMPRESSED: Final = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"})
_UNCLEAN: Final = re.compile(r"[\x00-\x20\x7f\\]")
# The worker's own trouble, for which no host is to blame: descriptors, ports, memory, routes.
_OURS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.ENETDOWN}
)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:", re.ASCII)


def follow_redirect(url: str, location: str) -> str:
    """The absolute URL of a redirect, as strictly parsed as the first one."""
    if _UNCLEAN.search(location):  # urljoin would quietly drop tabs and newlines
        raise _redirect_error("a URL with spaces, control characters or backslashes")
    try:
        # urljoin would read a URL without a host, such as http:///x, as one on the same host.
        joined = location if _SCHEME.match(location) else urljoin(url, location)
        if joined.partition(":")[0].lower() not in ("http", "https"):
            raise ImageError(ErrorCode.FORBIDDEN_SOURCE, "the server redirects to something other than http(s)")
        parse_reference(joined)
    except ValueError as error:
        raise _redirect_error("something that is not a URL") from error
    except ImageError as error:
        if error.code is ErrorCode.INVALID_REFERENCE:
            raise _redirect_error(f"an unusable URL: {error}") from None
        raise
    return joined


def _redirect_error(what: str) -> ImageError:
    return ImageError(ErrorCode.FETCH_FAILED, f"the server redirects to {what}")


def redirect_location(response: aiohttp.ClientResponse, host: str) -> str:
    """Where a redirect leads, as the server wrote it."""
    value = response.headers.get("Location")
    if not value:
        raise ImageError(ErrorCode.FETCH_FAILED, f"{host} answered {response.status} without a Location")
    return value


def require_accepted(response: aiohttp.ClientResponse, host: str) -> None:
    """Raise what a status, or an encoding nobody asked for, means."""
    status, answered = response.status, f"{host} answered {response.status}"
    if status in (404, 410):
        raise ImageError(ErrorCode.NOT_FOUND, answered)
    if status in (401, 403):
        raise ImageError(ErrorCode.ACCESS_DENIED, answered)
    if status in RETRIED_STATUSES:
        raise TransientError(answered, retry_after=retry_after_seconds(response.headers.get("Retry-After")))
    if status not in _ACCEPTED:
        raise ImageError(ErrorCode.FETCH_FAILED, f"{answered}, which is not a whole image")
    encodings = {part.strip().lower() for part in response.headers.get("Content-Encoding", "").split(",")}
    if encodings & _COMPRESSED:
        raise ImageError(ErrorCode.FETCH_FAILED, f"{host} sent compressed bytes that it was asked not to send")


def image_error(error: Exception, host: str) -> ImageError:
    """What an error of the client means; messages hold no URL, since URLs hold signatures."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else None
    if isinstance(cause, AddressRefused):
        return ImageError(ErrorCode.FORBIDDEN_ADDRESS, cause.refusal)
    if isinstance(error, aiohttp.InvalidURL):
        return ImageError(ErrorCode.INVALID_REFERENCE, "the reference is not a URL")
    if isinstance(cause, LookupTimeout):
        return ImageError(ErrorCode.FETCH_TIMEOUT, f"the host name {host} was not looked up in time")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return ImageError(ErrorCode.FETCH_FAILED, f"the host name {host} does not resolve")
    if isinstance(error, TimeoutError) or isinstance(cause, TimeoutError):
        return TransientError(f"{host} did not accept a connection in time", code=ErrorCode.FETCH_TIMEOUT)
    number = cause.errno if cause is not None else error.errno if isinstance(error, OSError) else None
    if number in _OURS:
        return ImageError(ErrorCode.FETCH_FAILED, f"the worker cannot open connections: {errno.errorcode[number]}")
    return HostTrouble(ErrorCode.FETCH_FAILED, _problem(error, host))


def _problem(error: Exception, host: str) -> str:
    if isinstance(error, WireLimitExceeded):
        return f"{host} sent too much around the image"
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        return f"no trusted TLS connection to {host}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect to {host}: {error.os_error.strerror or 'refused'}"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{host} answered with something that is not HTTP"
    return f"the connection to {host} broke before the whole image had arrived"
