"""Images over http(s) from hosts that strangers name.

What is checked, and where::

    URL ── scheme, credentials, notation, port ──► name lookup ── every address ──► socket ── the address dialled
     ▲                                                                                               │
     └──────────── redirect: joined, parsed and checked like the first URL, at most 5 ◄──────────────┘

Nothing of the environment (proxies, netrc) is used, no cookie is kept, nothing is decompressed, and the body is
counted while it arrives. Each hop takes its own turn at its host, and holds nothing between hops and retries.
"""

from __future__ import annotations

import re
import socket
from typing import Final

import aiohttp
from yarl import URL

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.ingest.admission import Admission, Ticket
from classifleet.worker.ingest.dialling import Dial, Dialler, dialling, progress_trace
from classifleet.worker.ingest.hosts import Visit
from classifleet.worker.ingest.outcomes import follow_redirect, image_error, redirect_location, require_accepted
from classifleet.worker.ingest.policy import AddressPolicy
from classifleet.worker.ingest.resolver import CheckedResolver, GetAddrInfo
from classifleet.worker.ingest.retry import with_retries
from classifleet.worker.ingest.wire import SMALL_CHUNK_BYTES

MAX_REDIRECTS: Final = 5
MAX_HOST_CHARS: Final = 254  # of DNS, with a trailing dot
MANY_CHUNKS: Final = 4096

_HEADERS: Final = {
    "User-Agent": "classifleet",
    "Accept": "image/jpeg, image/png, image/webp, image/gif, image/bmp, */*;q=0.1",
    "Accept-Encoding": "identity",
}
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# A URL of nothing but these is sent as it is: re-quoting breaks the signatures of signed URLs.
_PLAIN: Final = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+", re.ASCII)


class HttpClient:
    """GETs images; every error is an `ImageError`. Its life is spent on one event loop.

    Args:
        policy: Where it may go.
        admission: Lets each request begin.
        max_bytes: Bytes of one body, at most.
        connect_timeout_seconds: For one attempt to connect, TLS included.
        connections: Sockets in use at one time, at most.
        getaddrinfo: Looks names up; for tests.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        admission: Admission,
        *,
        max_bytes: int,
        connect_timeout_seconds: float,
        connections: int,
        getaddrinfo: GetAddrInfo = socket.getaddrinfo,
    ) -> None:
        self._policy = policy
        self._admission = admission
        self._max_bytes = max_bytes
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_seconds)
        self.dialler = Dialler(policy, connections, max_bytes)
        self._getaddrinfo = getaddrinfo
        self._resolver: CheckedResolver | None = None
        self._keeping: aiohttp.ClientSession | None = None
        self._closing: aiohttp.ClientSession | None = None
        self._in_use = 0

    async def start(self) -> None:
        """Open the connection pool, on the loop that `get` will be called on."""
        self._resolver = CheckedResolver(self._policy, self._getaddrinfo)
        self._keeping = self._session(self._resolver, keep_alive=True)
        self._closing = self._session(self._resolver, keep_alive=False)

    def _session(self, resolver: CheckedResolver, *, keep_alive: bool) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=self.dialler.connector(resolver, keep_alive=keep_alive),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            timeout=self._timeout,
            auto_decompress=False,
            trust_env=False,
            trace_configs=[progress_trace()],
        )

    async def close(self) -> None:
        """Close all connections."""
        for session in (self._keeping, self._closing):
            if session is not None:
                await session.close()
        if self._resolver is not None:
            await self._resolver.close()

    async def get(self, url: str, ticket: Ticket) -> bytes:
        """The body behind a URL.

        Args:
            url: An http(s) URL.
            ticket: The time there is, and the memory that the body is charged to.

        Raises:
            ImageError: Whatever went wrong.
            TimeoutError: The time is up.
        """
        return await with_retries(lambda: self._walk(url, ticket), ticket.clock)

    async def _walk(self, url: str, ticket: Ticket) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            target = self._target(url)
            async with self._admission.working(ticket, _host_key(target)) as visit:
                answer = await self._request(target, visit, ticket)
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

    async def _request(self, target: URL, visit: Visit, ticket: Ticket) -> bytes | str:
        """The body, or the Location of a redirect."""
        if self._keeping is None or self._closing is None:
            raise RuntimeError("the client has not been started")
        session = self._closing if self.dialler.too_many_idle(self._in_use) else self._keeping
        self._in_use += 1
        try:
            with dialling(target.raw_host or "") as dial:
                return await self._exchange(session, target, dial, visit, ticket)
        finally:
            self._in_use -= 1

    async def _exchange(
        self, session: aiohttp.ClientSession, target: URL, dial: Dial, visit: Visit, ticket: Ticket
    ) -> bytes | str:
        try:
            async with session.get(target, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    visit.answered = True
                    return redirect_location(response, dial.host)
                require_accepted(response, dial.host)
                visit.answered = True
                return await self._body(response, ticket)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if dial.refusal is not None:
                raise ImageError(ErrorCode.FORBIDDEN_ADDRESS, dial.refusal) from error
            raise image_error(error, dial.host) from error

    async def _body(self, response: aiohttp.ClientResponse, ticket: Ticket) -> bytes:
        if (response.content_length or 0) > self._max_bytes:
            raise self._too_large(f"the image has {response.content_length} bytes")
        data, chunks = bytearray(), 0
        async for part, _ in response.content.iter_chunks():
            chunks += 1
            if chunks > MANY_CHUNKS and len(data) < chunks * SMALL_CHUNK_BYTES:
                raise ImageError(ErrorCode.FETCH_FAILED, "the server sends the image in chunks of a few bytes")
            if len(data) + len(part) > self._max_bytes:
                raise self._too_large("the image is larger than it may be")
            await ticket.hold.grow(len(part))
            data += part
        return bytes(data)

    def _too_large(self, what: str) -> ImageError:
        return ImageError(ErrorCode.TOO_LARGE, f"{what}; at most {self._max_bytes} are read")


def _host_key(target: URL) -> str:
    """What counts as one host: the name, however it is written."""
    return (target.raw_host or "").lower().rstrip(".")
