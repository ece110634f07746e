"""What a server's answer, or the lack of one, means for an image. No message holds a URL: URLs hold signatures."""

from __future__ import annotations

import re
import ssl
from typing import Final
from urllib.parse import urljoin

import aiohttp

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.config.reference import parse_reference
from classifleet.worker.ingest.resolver import AddressRefused
from classifleet.worker.ingest.retry import TransientError, retry_after_seconds

_ACCEPTED: Final = frozenset({200, 203})
_COMPRESSED: Final = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"})
_UNCLEAN: Final = re.compile(r"[\x00-\x20\x7f\\]")
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
    if status == 429 or status >= 500:
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
    if isinstance(error, TimeoutError):
        return TransientError(f"{host} did not accept a connection in time", code=ErrorCode.FETCH_TIMEOUT)
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        problem = f"no trusted TLS connection to {host}"
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        problem = f"the host name {host} does not resolve"
    elif isinstance(error, aiohttp.ClientConnectorError):
        problem = f"cannot connect to {host}: {error.os_error.strerror or 'refused'}"
    elif isinstance(error, aiohttp.ClientResponseError):
        problem = f"{host} answered with something that is not HTTP"
    else:
        problem = f"the connection to {host} broke before the whole image had arrived"
    return ImageError(ErrorCode.FETCH_FAILED, problem)
