"""What a check of `classifleet doctor` is; each root contributes its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from classifleet.config.settings import Settings


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what to do about it."""

    subject: str
    state: State
    what: str
    remedy: str = ""

    def text(self) -> str:
        """What and remedy in one line."""
        return f"{self.what} — {self.remedy}" if self.remedy else self.what

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {"subject": self.subject, "state": self.state.value, "what": self.what, "remedy": self.remedy}


Check = Callable[[Settings], Iterable[Finding]]
