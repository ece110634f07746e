"""Images over http(s) from hosts that strangers name.

What is checked, and where::

    URL ── scheme, credentials, notation, port ──► name lookup ── every address ──► socket ── the address dialled
     ▲                                                                                               │
     └──────────── redirect: joined, parsed and checked like the first URL, at most 5 ◄──────────────┘

The guard on the socket is what holds: it sees the address that is about to be dialled, whatever the resolver, its
cache or a second answer of a rebinding name server said before. Nothing of the environment (proxies, netrc) is
used, no cookie is kept, nothing is decompressed, and the body is counted while it arrives.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.ingest.address import AddressPolicy, literal_address
from classifleet.worker.ingest.outcomes import follow_redirect, image_error, redirect_location, require_accepted
from classifleet.worker.ingest.resolver import AddressRefused, CheckedResolver, GetAddrInfo
from classifleet.worker.ingest.retry import MAX_ATTEMPTS, TransientError, retry_wait_seconds

MAX_REDIRECTS: Final = 5
MAX_HOST_CHARS: Final = 254  # of DNS, with a trailing dot
DNS_TTL_SECONDS: Final = 10
READ_BYTES: Final = 64 << 10

_HEADERS: Final = {
    "User-Agent": "classifleet",
    "Accept": "image/jpeg, image/png, image/webp, image/gif, image/bmp, */*;q=0.1",
    "Accept-Encoding": "identity",
}
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# A URL of nothing but these is sent as it is: re-quoting breaks the signatures of signed URLs.
_PLAIN: Final = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+", re.ASCII)


@dataclass(slots=True)
class _Dial:
    """The host that a request is for, and what the guard said if it refused an address."""

    host: str
    refusal: str | None = None


_dial: ContextVar[_Dial | None] = ContextVar("classifleet_dial", default=None)


class HttpClient:
    """GETs images; every error is an `ImageError`. Its life is spent on one event loop.

    Args:
        policy: Where it may go.
        max_bytes: Bytes of one body, at most.
        connect_timeout_seconds: For one attempt to connect, TLS included.
        connections: Sockets open at one time, at most.
        getaddrinfo: Looks names up; for tests.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        max_bytes: int,
        connect_timeout_seconds: float,
        connections: int,
        getaddrinfo: GetAddrInfo = socket.getaddrinfo,
    ) -> None:
        self._policy = policy
        self._max_bytes = max_bytes
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_seconds)
        self._connections = connections
        self._getaddrinfo = getaddrinfo
        self._resolver: CheckedResolver | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the connection pool, on the loop that `get` will be called on."""
        self._resolver = CheckedResolver(self._policy, self._getaddrinfo)
        connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            socket_factory=self._guarded_socket,
            ttl_dns_cache=DNS_TTL_SECONDS,
            limit=self._connections,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            timeout=self._timeout,
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
        if self._resolver is not None:
            await self._resolver.close()

    async def get(self, url: str, *, expires_at: float) -> bytes:
        """The body behind a URL.

        Args:
            url: An http(s) URL.
            expires_at: Time of the event loop after which no retry begins. The caller also cancels there.

        Raises:
            ImageError: Whatever went wrong.
        """
        loop = asyncio.get_running_loop()
        attempt = 1
        while True:
            try:
                return await self._walk(url)
            except TransientError as error:
                wait_seconds = retry_wait_seconds(attempt, error.retry_after_seconds, random.random())
                if attempt >= MAX_ATTEMPTS or loop.time() + wait_seconds >= expires_at:
                    raise ImageError(error.code, f"{error} (attempts: {attempt})") from error
            attempt += 1
            await asyncio.sleep(wait_seconds)

    async def _walk(self, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._request(self._target(url))
            if isinstance(answer, bytes):
                return answer
            url = follow_redirect(url, answer)
        raise ImageError(ErrorCode.FETCH_FAILED, f"the URL redirects more than {MAX_REDIRECTS} times")

    def _target(self, url: str) -> URL:
        try:
            target = URL(url, encoded=_PLAIN.fullmatch(url) is not None)
            host, port = target.raw_host, target.port
            credentials = target.raw_user is not None or target.raw_password is not None
        except ValueError:
            raise ImageError(ErrorCode.INVALID_REFERENCE, "the reference is not a URL") from None
        if not host or port is None or credentials or target.scheme not in ("http", "https"):
            raise ImageError(ErrorCode.INVALID_REFERENCE, "the reference is not an http(s) URL without credentials")
        if len(host) > MAX_HOST_CHARS:
            raise ImageError(ErrorCode.INVALID_REFERENCE, "the URL's host name is too long")
        refusal = self._policy.target_refusal(host, port)
        if refusal is not None:
            raise ImageError(ErrorCode.FORBIDDEN_ADDRESS, refusal)
        return target

    async def _request(self, target: URL) -> bytes | str:
        """The body, or the Location of a redirect."""
        if self._session is None:
            raise RuntimeError("the client has not been started")
        dial = _Dial(target.raw_host or "")
        token = _dial.set(dial)
        try:
            async with self._session.get(target, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    return redirect_location(response, dial.host)
                require_accepted(response, dial.host)
                return await self._body(response)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if dial.refusal is not None:
                raise ImageError(ErrorCode.FORBIDDEN_ADDRESS, dial.refusal) from error
            raise image_error(error, dial.host) from error
        finally:
            _dial.reset(token)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        if (response.content_length or 0) > self._max_bytes:
            raise self._too_large(f"the image has {response.content_length} bytes")
        data = bytearray()
        async for part in response.content.iter_chunked(READ_BYTES):
            data += part
            if len(data) > self._max_bytes:
                raise self._too_large("the image is larger than it may be")
        return bytes(data)

    def _too_large(self, what: str) -> ImageError:
        return ImageError(ErrorCode.TOO_LARGE, f"{what}; at most {self._max_bytes} are read")

    def _guarded_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for an address that may be dialled; the last check, and the one that cannot be raced."""
        family, kind, proto, _, sockaddr = info
        dial = _dial.get() or _Dial("")  # without a request no host rule applies
        address = literal_address(str(sockaddr[0]))
        if address is None:
            dial.refusal = f"{dial.host} leads to something that is not an IP address"
        else:
            dial.refusal = self._policy.refusal(dial.host or str(address), address, int(sockaddr[1]))
        if dial.refusal is not None:
            raise AddressRefused(dial.refusal)
        return socket.socket(family, kind, proto)
