"""What a user gets: the wheel and the editable install agree, types are seen, and the base install is small."""

from __future__ import annotations

import ast
import email
import json
import re
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from classifleet.config import Keys
from classifleet.ledger import Ledger, SyncRunner
from tests.support.environments import make_environment, run

ROOT = Path(__file__).parents[2]
ROOTS = ("config", "producer", "worker")
PART_OF = {"botocore": "boto3", "urllib3": "boto3", "pydantic_core": "pydantic", "yarl": "aiohttp"}  # in their APIs
HEAVY = ("torch", "torchvision", "boto3", "botocore", "aiohttp", "numpy", "PIL", "prometheus_client")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution as an index would have it."""
    folder = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def base_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and its base requirements."""
    required = [text for text in requirements(wheel) if "extra ==" not in text]
    assert required
    return make_environment(tmp_path_factory.mktemp("base"), wheel, required)


def requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])


def test_the_wheel_has_every_file_of_the_three_roots(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("classifleet/")}
        others = {name.split("/")[0] for name in archive.namelist()} - {"classifleet"}
    ours = {
        path.relative_to(ROOT / root).as_posix()
        for root in ROOTS
        for path in (ROOT / root).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert packed == ours
    assert "classifleet/__init__.py" not in packed, "it would hide the packages of other distributions"
    assert {f"classifleet/{name}/py.typed" for name in ("config", "ledger", "producer", "worker")} <= packed
    assert len(others) == 1, "nothing beside the package and its metadata"


DESCRIBE = """
import classifleet, importlib.metadata as metadata, json, pathlib
roots = [pathlib.Path(root) for root in classifleet.__path__]
found = metadata.distribution("classifleet")
print(json.dumps({
    "files": sorted(str(path.relative_to(root)) for root in roots for path in root.rglob("*")
                    if path.is_file() and path.suffix != ".pyc"),
    "entry_points": sorted(f"{e.group} {e.name} {e.value}" for e in found.entry_points),
    "requires": sorted(found.requires),
    "version": found.version,
}))
"""


def test_the_editable_install_exposes_what_the_wheel_does(base_python: Path) -> None:
    installed, editable = (json.loads(run(python, "-c", DESCRIBE).stdout) for python in (base_python, sys.executable))
    assert installed == editable
    groups = {text.split()[0] for text in installed["entry_points"]}
    assert {"console_scripts", "classifleet.commands"} <= groups


def test_every_entry_point_leads_somewhere() -> None:
    from importlib.metadata import distribution

    points = [point for point in distribution("classifleet").entry_points if "classifleet" in point.value]
    assert points
    assert [point.name for point in points if not callable(point.load())] == []


def test_the_base_environment_has_none_of_the_heavy_packages(base_python: Path) -> None:
    code = f"import importlib.util as u; print([name for name in {HEAVY!r} if u.find_spec(name)])"
    assert run(base_python, "-c", code).stdout == "[]\n"
    assert run(sys.executable, "-c", code).stdout == f"{list(HEAVY)!r}\n", "the check can see them"


def test_the_wheel_alone_submits(base_python: Path, redis_url: str) -> None:
    import redis

    code = """
import sys
from classifleet.producer import Fleet
with Fleet(sys.argv[1]) as fleet:
    print(fleet.submit("https://example.com/a.jpg", models="imagenet").id)
"""
    done = run(base_python, "-W", "error", "-c", code, redis_url)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    with redis.Redis.from_url(redis_url) as client:
        fields = SyncRunner(client, redis_url).run(Ledger(Keys("default")).job(job))
        assert (fields["state"], fields["accepted"], fields["queued"]) == ("sealed", "1", "1")
        assert client.llen(f"{Keys('default').broker}classify.default.interactive") == 1


def test_help_needs_no_extra(base_python: Path) -> None:
    done = run(base_python.with_name("classifleet"), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout
    assert "worker" in done.stdout


@pytest.mark.parametrize("command", ["worker", "models verify imagenet", "models build"])
def test_a_command_that_needs_an_extra_names_it(base_python: Path, tmp_path: Path, command: str) -> None:
    settings = {"CLASSIFLEET_BROKER_URL": "redis://127.0.0.1:1/0", "CLASSIFLEET_MODEL_REPOSITORY": str(tmp_path)}
    done = run(base_python.with_name("classifleet"), *command.split(), variables=settings)
    assert done.returncode != 0
    assert re.search(r"pip install 'classifleet\[\w+\]'", done.stderr), done.stderr
    assert "Traceback" not in done.stderr


SNIPPET = """
from classifleet.config import ErrorCode, Settings
from classifleet.producer import Fleet, Result

def classify(url: str) -> str | None:
    settings = Settings.load(broker_url=url)
    with Fleet(url) as fleet:
        result = fleet.submit("https://example.com/a.jpg", models="imagenet").result(timeout=1)
    reveal_type(result)
    reveal_type(settings.lease_seconds)
    reveal_type(ErrorCode.POISON.spec.http_status)
    return result.top

def wrong(fleet: Fleet) -> int:
    fleet.submit("https://example.com/a.jpg", model="imagenet")
    return fleet.submit(7.5, models="imagenet")
"""


def test_a_user_sees_the_types_of_either_install(base_python: Path, tmp_path: Path) -> None:
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET)
    seen = []
    for python in (base_python, Path(sys.executable)):
        arguments = ("--strict", "--config-file=", "--no-error-summary", "--no-pretty", "--python-executable", python)
        mypy = (sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "cache")
        seen.append(run(*mypy, *arguments, snippet).stdout.replace(f"{tmp_path}/", ""))
    assert seen[0] == seen[1]
    revealed = re.findall(r'Revealed type is "(.*)"', seen[0])
    assert revealed == ["classifleet.producer.result.Result", "float", "int"]
    errors = re.findall(r":(\d+): error: .*\[([\w-]+)\]", seen[0])
    assert {code for _, code in errors} == {"call-arg", "arg-type", "return-value"}
    assert {int(line) for line, _ in errors} == {15, 16}, seen[0]


def test_importing_the_producer_loads_nothing_heavy() -> None:
    code = f"import sys, classifleet.producer; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = run(sys.executable, "-c", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def imports(path: Path) -> set[tuple[str, bool]]:
    """Top-level names that a module imports from elsewhere, and whether it does so as soon as it is imported."""
    found: set[tuple[str, bool]] = set()

    def visit(node: ast.AST, at_once: bool) -> None:
        if isinstance(node, ast.Import):
            found.update((alias.name.partition(".")[0], at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add((node.module.partition(".")[0], at_once))
        later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        for child in ast.iter_child_nodes(node):
            visit(child, at_once and not later)

    visit(ast.parse(path.read_text()), True)
    return found


def test_every_import_is_of_a_declared_requirement(wheel: Path) -> None:
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    declared = {normal(Requirement(text).name): "extra ==" in text for text in reversed(requirements(wheel))}
    owners = packages_distributions()
    missing = set()
    for root in ROOTS:
        for path in (ROOT / root).rglob("*.py"):
            for name, at_once in imports(path):
                if name in sys.stdlib_module_names or name == "classifleet":
                    continue
                names = {PART_OF.get(name) or normal(owner) for owner in owners.get(name, [name])}
                extras = [declared[name] for name in names if name in declared]
                needs_base = at_once and root != "worker"
                if not extras or (needs_base and all(extras)):
                    missing.add((path.relative_to(ROOT).as_posix(), name))
    assert missing == set()


def test_the_contracts_between_the_roots_hold() -> None:
    config = ROOT / "pyproject.toml"
    done = run(Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", config)
    assert done.returncode == 0, done.stdout
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout)
