"""Compiled packages in a folder, and the process that compiles them."""

from __future__ import annotations

import json
import os
import sys

import pytest

from classifleet.config.errors import ModelError
from classifleet.worker.models import ModelDescription
from classifleet.worker.models._packages import Packages, package_name
from tests.models_support import description_fields
from tests.support import wait_until

pytest.importorskip("torch")
from classifleet.worker.models import _inductor

DESCRIPTION = ModelDescription.from_fields(description_fields(), where="test")
NAME = "m-1-0123456789abcdef"


@pytest.fixture
def package(tmp_path):
    file = tmp_path / "compiled"
    file.write_bytes(b"native code" * 1000)
    return file


def test_a_package_comes_back_as_a_copy(tmp_path, package):
    packages = Packages(tmp_path / "kept")
    assert not packages.has(NAME)
    assert not packages.fetch(NAME, tmp_path / "copy")
    packages.keep(NAME, package)
    packages.keep(NAME, package)
    assert packages.has(NAME)
    assert not packages.has("m-1-fedcba9876543210")
    assert packages.fetch(NAME, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == package.read_bytes()
    assert len(list((tmp_path / "kept").iterdir())) == 1, "the same bytes are one file"


@pytest.mark.parametrize("damage", [b"", b"other code", b"native code" * 999])
def test_a_damaged_package_is_not_used_and_another_whole_one_is(tmp_path, package, damage):
    packages = Packages(tmp_path / "kept")
    packages.keep(NAME, package)
    [whole] = (tmp_path / "kept").iterdir()
    damaged = whole.with_name(f"{NAME}-{'0' * 64}.pt2")  # sorts first
    damaged.write_bytes(damage)
    assert packages.fetch(NAME, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == package.read_bytes()
    assert not damaged.exists()
    whole.write_bytes(damage)
    assert not packages.fetch(NAME, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_no_folder_keeps_nothing(tmp_path, package):
    Packages(None).keep(NAME, package)
    assert not Packages(None).has(NAME)
    (tmp_path / "a-file").touch()
    Packages(tmp_path / "a-file").keep(NAME, package)  # reported, and no error


def test_the_name_says_what_a_package_holds_for():
    fields = description_fields()
    other = ModelDescription.from_fields({**fields, "sha256": "f" * 64}, where="test")
    names = [package_name(DESCRIPTION, "cpu", "fp32"), package_name(DESCRIPTION, "cpu", "bf16"),
             package_name(other, "cpu", "fp32")]  # fmt: skip
    assert len(set(names)) == 3
    assert all(name.startswith(f"{DESCRIPTION.name}-{DESCRIPTION.version}-") for name in names)


def run(tmp_path, monkeypatch, code: str, seconds: float = 60.0) -> None:
    monkeypatch.setattr(_inductor, "COMMAND", (sys.executable, "-I", "-c", code))
    _inductor._compile(DESCRIPTION, tmp_path / "model.pt", "cpu", "fp32", tmp_path / "out.pt2", seconds)


def test_the_reason_of_the_child_is_the_error(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"cannot be compiled: LoweringException: of some kind$"):
        run(
            tmp_path,
            monkeypatch,
            "import sys; print('noise', file=sys.stderr); sys.exit('LoweringException: of some kind')",
        )
    with pytest.raises(ModelError, match="cannot be compiled: no reason given"):
        run(tmp_path, monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")


def test_the_child_and_its_compilers_end_with_the_time(tmp_path, monkeypatch):
    code = (
        "import pathlib, subprocess, sys, threading\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import threading; threading.Event().wait()'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "threading.Event().wait()"
    )
    with pytest.raises(ModelError, match="longer than 3 s"):
        run(tmp_path, monkeypatch, code, seconds=3.0)
    pid = int((tmp_path / "pid").read_text())

    def ended() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(ended, "the compiler has ended")


def test_the_child_sees_nothing_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("CLASSIFLEET_BROKER_URL", "redis://:secret@host")
    seen = tmp_path / "seen"
    run(
        tmp_path,
        monkeypatch,
        f"import json, os, sys; json.dump([dict(os.environ), sys.argv], open({str(seen)!r}, 'w'))",
    )
    environment, arguments = json.loads(seen.read_text())
    assert "secret" not in json.dumps(environment)
    asked = json.loads(arguments[1])
    assert asked["package"] == str(tmp_path / "out.pt2")
    assert asked["description"]["name"] == DESCRIPTION.name


def test_without_a_compiler_the_reason_names_it(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler is not on PATH" in _inductor.missing("cpu")
