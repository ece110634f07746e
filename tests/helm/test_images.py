"""The Dockerfile and the compose file, as far as they can be judged without an engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from classifleet.config import Settings
from tests.helm.support import ROOT, VARIANTS

FOLDER = ROOT / "docker"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())


def hadolint(path: Path) -> list[dict[str, Any]]:
    executable = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [executable, "--format", "json", path], capture_output=True, text=True, check=False, timeout=60
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def stages() -> dict[str, tuple[str, list[str]]]:
    """By name: what a stage starts from, and its instructions, each on one line."""
    found: dict[str, tuple[str, list[str]]] = {}
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    for line in filter(None, text.splitlines()):
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[match[2]] = (match[1], [])
        elif found:
            next(reversed(found.values()))[1].append(line)
    return found


def instructions(target: str) -> list[str]:
    """Those of a target and of the stages below it, in order."""
    if target not in stages():
        return []
    base, own = stages()[target]
    return [*instructions(base), *own]


def last(target: str, instruction: str) -> str:
    found = [line.partition(" ")[2] for line in instructions(target) if line.startswith(f"{instruction} ")]
    return found[-1]


def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    assert hadolint(FOLDER / "Dockerfile") == []
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp && apt-get install curl\nCMD worker\n")
    assert {"DL3006", "DL3008", "DL3025"} <= {each["code"] for each in hadolint(bad)}, "it can see"


@pytest.mark.parametrize("target", VARIANTS)
def test_what_each_image_starts(target: str) -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", last(target, "USER")), "a number, so that runAsNonRoot can tell"
    assert json.loads(last(target, "ENTRYPOINT")) == ["/usr/bin/tini", "--", "classifleet"]
    assert json.loads(last(target, "CMD")) == ["exporter" if target == "exporter" else "worker"]
    assert last(target, "STOPSIGNAL") == "SIGTERM"
    assert last(target, "HEALTHCHECK") == "NONE"


@pytest.mark.parametrize("target", VARIANTS)
def test_images_have_no_models_no_pip_and_no_compilers(target: str) -> None:
    lines = "\n".join(instructions(target))
    assert "apt-get" not in lines
    assert not re.search(r"models (build|fetch)|model\.pt|zoo", lines)
    assert "venv --without-pip" in DOCKERFILE
    [extras] = re.findall(rf"^FROM build AS {target}-packages\nARG EXTRAS=(\S+)", DOCKERFILE, re.MULTILINE)
    assert "zoo" not in extras


@pytest.mark.parametrize("target", VARIANTS)
def test_requirements_are_those_of_the_project(target: str) -> None:
    [extras] = re.findall(rf"^FROM build AS {target}-packages\nARG EXTRAS=(\S+)", DOCKERFILE, re.MULTILINE)
    printed = subprocess.run(
        [sys.executable, "docker/requirements.py", extras], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    names = {re.split(r"[\[<>=;]", line)[0] for line in printed}
    assert {"celery", "redis", "prometheus-client", "boto3", "pycurl"} <= names
    assert ("torch" in names) == (target != "exporter")
    assert ("openvino" in names) == (target == "cpu")
    assert ("scikit-image" in names) == (target != "exporter"), "without photos it stays in fp32"
    assert "classifleet" not in names


def test_the_variables_of_the_image_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = dict(re.findall(r"(CLASSIFLEET_\w+)=(\S+)", "\n".join(instructions("cpu"))))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    assert (settings.http_host, settings.http_port, settings.model_repository) == ("::", 9464, "/models")


def test_what_is_copied_is_not_ignored() -> None:
    """The build sees nothing else, so that neither .git nor a virtual environment is sent to it."""
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in lines
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_the_compose_file_keeps_to_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    services = COMPOSE["services"]
    for name in ("models", "worker", "worker-gpu", "exporter"):
        service = services[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        for variable, value in service["environment"].items():
            monkeypatch.setenv(variable, value)
        Settings.load()
        if target := service.get("build", {}).get("target"):
            assert target in stages()
    assert services["worker"]["stop_grace_period"] == f"{Settings.load().drain_seconds + 30:g}s"
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports), "a laptop's network is not one's own"
    assert {"yes", "noeviction"} <= set(services["redis"]["command"])
