"""What is being tried is remembered for the process after the one that it kills."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from classifleet.worker.models._attempts import Attempts, attempts

DIES = """
import os, pathlib, sys
from classifleet.worker.models._attempts import attempts
with attempts(pathlib.Path(sys.argv[1])) as tried:
    with tried.trying("good"):
        pass
    with tried.trying("bad"):
        os.kill(os.getpid(), 9)
"""


def die(outcome: Path) -> None:
    assert subprocess.run([sys.executable, "-c", DIES, outcome], check=False, timeout=60).returncode == -9


def test_what_kills_the_process_twice_is_fatal(tmp_path):
    outcome, trying = tmp_path / "new" / "m-1-0.json", tmp_path / "new" / "m-1-0.trying"
    die(outcome)
    with attempts(outcome) as tried:
        assert not tried.fatal("bad"), "it may have been told to end"
        with pytest.raises(KeyboardInterrupt), tried.trying("other"):
            raise KeyboardInterrupt
    assert not trying.exists(), "the rest went well"
    die(outcome)
    die(outcome)
    with attempts(outcome) as tried, tried.trying("good"):
        assert [tried.fatal(name) for name in ("good", "bad")] == [False, True]
    assert trying.read_text() == "bad\nbad\n", "and remains so, if the model is tuned again"


def test_who_tunes_at_the_same_time_is_alive(tmp_path):
    outcome = tmp_path / "m-1-0.json"
    with attempts(outcome) as mine, mine.trying("slow"), mine.trying("slow"), attempts(outcome) as other:
        assert not other.fatal("slow")
        with other.trying("slow"):
            assert (tmp_path / "m-1-0.trying").read_text() == "slow\n", "only the first one writes"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_remembers_nothing(tmp_path):
    (tmp_path / "file").touch()
    with attempts(tmp_path / "file" / "m-1-0.json") as tried, tried.trying("any"):
        assert not tried.fatal("any")
    with Attempts().trying("any"):
        pass


def test_a_process_that_is_told_to_end_takes_its_line_back(tmp_path):
    """It ends at once, by `os._exit`, while the model is compiled."""
    told = DIES.replace("os.kill(os.getpid(), 9)", "stopping._end()").replace(
        "import os,", "from classifleet.worker import stopping\nimport os,"
    )
    outcome = tmp_path / "m-1-0.json"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", told, outcome], check=False, timeout=60).returncode == 0
    assert (tmp_path / "m-1-0.trying").read_text() == ""
    with attempts(outcome) as tried:
        assert not tried.fatal("bad")


def test_a_volume_that_is_full_remembers_nothing(tmp_path):
    full = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + DIES.replace(
        "os.kill(os.getpid(), 9)", "sys.exit(tried.fatal('bad'))"
    ).replace("with attempts", "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\nwith attempts")
    outcome = tmp_path / "m-1-0.json"
    ended = subprocess.run([sys.executable, "-c", full, outcome], check=False, timeout=60, capture_output=True)
    assert ended.returncode == 0, ended.stderr
