"""What a check of `classifleet doctor` is; each root contributes its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

from packaging.requirements import Requirement

from classifleet.config.settings import Settings

DISTRIBUTION: Final = "classifleet"


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

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {"subject": self.subject, "state": self.state.value, "what": self.what, "remedy": self.remedy}


Check = Callable[[Settings], Iterable[Finding]]


def requirements(extra: str | None) -> list[Requirement]:
    """What our own metadata demand here, for the base install (None) or by one extra alone."""
    found = [Requirement(line) for line in requires(DISTRIBUTION) or ()]
    if extra is None:
        return [needed for needed in found if _applies(needed, "")]
    return [needed for needed in found if _applies(needed, extra) and not _applies(needed, "")]


def check_requirements(subject: str, *, extra: str | None, also: str = "") -> Iterator[Finding]:
    """Findings on the versions of the libraries; one line for all that are right."""
    right = [also] if also else []
    for needed in requirements(extra):
        remedy = f"pip install '{needed.name}{needed.specifier}'"
        try:
            installed = version(needed.name)
        except PackageNotFoundError:
            yield Finding(subject, State.FAILED, f"{needed.name} is not installed", remedy)
            continue
        if needed.specifier.contains(installed, prereleases=True):
            right.append(f"{needed.name} {installed}")
        else:
            what = f"{needed.name} is {installed}, classifleet needs {needed.specifier}"
            yield Finding(subject, State.FAILED, what, remedy)
    if right:
        yield Finding(subject, State.OK, ", ".join(right))


def _applies(needed: Requirement, extra: str) -> bool:
    return needed.marker is None or needed.marker.evaluate({"extra": extra})
