"""What is being tried, in a file beside the outcome: what kills the process would do so at every start.

    <entry>.trying   a line for each variant at which a process ended, and one for what is tried now

A process that is told to end takes its line back (`exits.POLITELY`). One that is killed from outside leaves the same
trace as one that its variant killed: once is no proof.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Final

import structlog

from classifleet.worker.exits import POLITELY

PROOF: Final = 2
SUFFIX: Final = ".trying"
log = structlog.get_logger(__name__)


class Attempts:
    """Remembers what is tried; without a file it remembers nothing."""

    def __init__(self, file: FileIO | None = None, ended: Sequence[str] = ()) -> None:
        self._file = file
        self._ended = ended

    def fatal(self, variant: str) -> bool:
        """Whether processes have ended while they tried it."""
        return self._ended.count(variant) >= PROOF

    @property
    def killers(self) -> list[str]:
        """What is fatal, a line for each time."""
        return [variant for variant in self._ended if self.fatal(variant)]

    @contextmanager
    def trying(self, variant: str) -> Iterator[None]:
        """While it is tried. An exception that leaves this ends the process, as a lost device does."""
        self._write([*self._ended, variant])
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self.withdraw()
            raise
        self.withdraw()

    def withdraw(self) -> None:
        """Nothing is tried now."""
        self._write(self._ended)

    def _write(self, lines: Sequence[str]) -> None:
        if self._file is None:
            return
        try:
            self._file.truncate(0)  # opened to append: what is written stands at its end
            self._file.write("".join(f"{line}\n" for line in lines).encode())
        except OSError as error:  # a full volume must not end a worker
            log.debug("not remembered what is tried", error=str(error))
            self._file = None


@contextmanager
def attempts(outcome: Path) -> Iterator[Attempts]:
    """While a model is tuned, whose outcome will be kept there. Afterwards only what is fatal is remembered."""
    path = outcome.with_suffix(SUFFIX)
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(FileIO(path, "a+"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it ends with the process, however that ends
        except OSError as error:
            log.debug("not remembered what is tried", file=str(path), error=str(error))  # or another process tunes
            yield Attempts()
            return
        file.seek(0)
        made = Attempts(file, file.read().decode(errors="replace").split())
        POLITELY.append(made.withdraw)
        stack.callback(POLITELY.remove, made.withdraw)
        yield made
        with suppress(OSError):
            path.write_text("".join(f"{line}\n" for line in made.killers))
            if not made.killers:
                path.unlink(missing_ok=True)
