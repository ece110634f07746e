"""The last line of defence of logs and traces: no query, no credentials and no image bytes, whatever a text says.

What we write ourselves is redacted where it is written (`config.reference.redact`, `config.urls.mask_url`). This is
for what others say: an exception of a library that names the URL it was given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

MAX_CHARS: Final = 8192
"""Of a value; an exception's end, which says what it was, is kept."""

# Nothing here looks at a character more than a few times: a hostile text may be long.
_END: Final = r"\s'\"<>"
_DATA: Final = re.compile(rf"\bdata:[\w/+.;=-]*,[^{_END}]*", re.IGNORECASE)
_URL: Final = re.compile(rf"\b([a-z][a-z0-9+.-]{{0,30}}://)([^{_END}]*)", re.IGNORECASE)
_QUERY: Final = re.compile(rf"\?[^{_END}=?]+=[^{_END}]*")


def scrub(text: str) -> str:
    """The text without the queries and credentials of URLs, and without `data:` contents."""
    if ":" in text:
        text = _URL.sub(_without_secrets, _DATA.sub("data:redacted", text))
    return _QUERY.sub("?redacted", text) if "?" in text else text


def _without_secrets(url: re.Match[str]) -> str:
    scheme, rest = url.groups()
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in rest and ("://" in rest or _has_password(authority)):
        rest = rest.rpartition("@")[2]  # also what ought to have been encoded in a password; of several URLs the last
    elif "@" in authority:
        rest = rest[authority.rindex("@") + 1 :]
    base, *query = re.split("[?#]", rest, maxsplit=1)
    return f"{scheme}{base}" + ("?redacted" if query else "")


def _has_password(authority: str) -> bool:
    """Whether it is the beginning of `user:password@host`, and not `host:port`."""
    port = authority.rpartition(":")[2]
    return "@" not in authority and ":" in authority and not (port.isdigit() or authority.startswith("["))


def scrub_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Scrub every value of a log line; a processor of structlog, after exceptions are text and before the line is."""
    for key, value in event.items():
        event[key] = _scrubbed(value)
    return event


def _scrubbed(value: Any) -> Any:
    match value:
        case str():
            text = scrub(value)
            return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS // 2]} … {text[-MAX_CHARS // 2 :]}"
        case bytes() | bytearray() | memoryview():
            return f"{len(value)} bytes"
        case Mapping():
            return {key: _scrubbed(each) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_scrubbed(each) for each in value]
        case None | bool() | int() | float():
            return value
    return _scrubbed(str(value))
