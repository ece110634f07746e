"""Times and ages as people write and read them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

import typer

_AGE: Final = re.compile(r"([0-9]{1,6})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400


def parse_age(text: str) -> timedelta:
    """`30s`, `15m`, `2h`, `7d` or `1w` as a duration.

    Raises:
        typer.BadParameter: It is none.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not an age: write 30s, 15m, 2h, 7d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def duration(seconds: float) -> str:
    """Seconds as `42 s`, `3 min`, `2 h 5 min` or `3 d 4 h`."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < _DAY:
        return f"{seconds // _HOUR:.0f} h {seconds % _HOUR // _MINUTE:.0f} min"
    return f"{seconds // _DAY:.0f} d {seconds % _DAY // _HOUR:.0f} h"


def when(time: datetime | None) -> str:
    """A time as the tables show it, in UTC."""
    return "" if time is None else time.strftime("%Y-%m-%d %H:%M")
