"""The chaos suite: `make chaos` runs all of it, `make test` the scenarios marked `quick`, in small.

@pytest.mark.chaos("1", "kill -9 of workers", quick=True)
def test_kill(scenario: Scenario) -> None:
    with scenario.arena() as it: ...
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.arena import Arena, opened
from tests.chaos.model import add_model
from tests.chaos.place import MOST_PHOTOS, Place
from tests.chaos.report import LEGEND, PLAIN, PLAIN_LEGEND, SKIPPED, Row, failed, skipped, table
from tests.chaos.verdict import Expected
from tests.chaos.web import GatedWeb
from tests.models_support import PHOTOS
from tests.support.services import ACCESS_KEY, SECRET_KEY, S3Server

_rows = pytest.StashKey[list[Row]]()
_PROBLEMS_SHOWN = 12
RECOVERY_SECONDS = 60.0
"""Within so many is work committed that was in flight at a fault, if its scenario says nothing else: a lease of 2 s,
two rounds of the reconciler, the restart of a worker, and a machine that is slow."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--chaos", action="store_true", help="run every chaos scenario, at full length")
    group.addoption("--chaos-table", type=Path, help="write the chaos suite's table to this file, too")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_rows] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--chaos", default=False):
        return
    long = [item for item in items if (mark := item.get_closest_marker("chaos")) and not mark.kwargs.get("quick")]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and (mark := item.get_closest_marker("chaos")):
        callspec = getattr(item, "callspec", None)
        part = "" if callspec is None else callspec.params.get("part", "")
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        item.config.stash[_rows].append(skipped(mark.args[0] + part, mark.args[1], why.removeprefix("Skipped: ")))
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[_rows]
    if not rows:
        return
    ours = [row for row in rows if not row.number.startswith(PLAIN)]
    plain = [row for row in rows if row.number.startswith(PLAIN)]
    lines = table(ours) + ["", PLAIN_LEGEND, *table(plain)] * bool(plain) + ["", LEGEND]
    terminalreporter.section("chaos")
    for line in lines:
        terminalreporter.write_line(line)
    for row in rows:
        if row.verdict.startswith(SKIPPED):
            terminalreporter.write_line(f"NOT RUN: {row.number}, {row.title}: {row.verdict}", red=True)
    if path := config.getoption("--chaos-table", default=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def place(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, s3_server: S3Server
) -> Iterator[Place]:
    """Model, photos, web and S3, once for all scenarios."""
    pytest.importorskip("torch", reason="the extra [worker] is not installed")
    folder = PHOTOS if PHOTOS.is_dir() else request.getfixturevalue("photos")
    photos = sorted(folder.iterdir())[:MOST_PHOTOS]
    models = add_model(tmp_path_factory.mktemp("chaos-models"))
    with GatedWeb.serve(photos) as web:
        place = Place(models, tuple(photos), web, s3_server)
        place.upload()
        yield place


@dataclass(slots=True)
class Scenario:
    """One test's scenario. `full` is false in `make test`."""

    number: str
    title: str
    full: bool
    place: Place
    folder: Path
    most_seconds: float
    rows: list[Row]
    _arenas: int = 0

    @contextmanager
    def arena(
        self,
        *,
        part: str = "",
        settings: Mapping[str, str] | None = None,
        redis_options: tuple[str, ...] = (),
        ledger_database: int = 0,
        expected: Expected | None = None,
    ) -> Iterator[Arena]:
        """An arena, which is judged at the end; a failure on the way is a row, too."""
        folder = self.folder / f"arena-{self._arenas}"
        self._arenas += 1
        options = {"settings": settings, "redis_options": redis_options, "ledger_database": ledger_database}
        number, title = self.number + part, self.title
        with opened(self.place, folder, **options) as it:
            try:
                yield it
                verdict = it.judge(expected=expected)
            except BaseException:
                self.rows.append(failed(number, title, sum(len(each.ids) for each in it.all_accepted()), it.faults))
                raise
            self.rows.append(it.row(number, title, verdict, self.most_seconds))
        shown = "\n".join(verdict.problems[:_PROBLEMS_SHOWN])
        assert not verdict.problems, f"scenario {number}, {title} (logs in {folder}):\n{shown}"


@pytest.fixture
def scenario(
    request: pytest.FixtureRequest, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Scenario:
    """What the test's mark says, at the place that all share."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    mark = request.node.get_closest_marker("chaos")
    full = request.config.getoption("--chaos", default=False)
    most_seconds = mark.kwargs.get("within", RECOVERY_SECONDS)
    return Scenario(*mark.args, full, place, tmp_path, most_seconds, request.config.stash[_rows])
