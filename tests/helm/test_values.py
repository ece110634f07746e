"""values.yaml, values.schema.json, the README and the settings of the code say the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helm.generate import OWNED, documented
from helm_python import Chart
from helm_python.errors import HelmValuesError

from classifleet.config import Settings
from classifleet.config.brokers import STOCK_VISIBILITY_SECONDS
from tests.helm.support import CHART, EXAMPLES, LEAST, ROOT, chart, example, merged, render, settings_of

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def keys(schema: dict[str, Any], path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Paths of all properties that the schema names."""
    if reference := schema.get("$ref"):
        schema = SCHEMA["definitions"][reference.rpartition("/")[2]]
    found: set[tuple[str, ...]] = set()
    for name, below in schema.get("properties", {}).items():
        found |= {(*path, name)} | keys(below, (*path, name))
    return found


def test_the_schema_covers_exactly_the_keys_of_the_values() -> None:
    values = documented((CHART / "values.yaml").read_text())
    leaves = {value.path for value in values if value.is_leaf}
    named = {path for path in keys(SCHEMA) if not any(path[:n] in leaves for n in range(1, len(path)))}
    assert named - {("global",)} == {value.path for value in values}


def test_no_object_of_the_schema_takes_keys_that_it_does_not_name() -> None:
    def objects(schema: Any) -> Any:
        if isinstance(schema, dict):
            if "properties" in schema and "type" in schema:
                yield schema
            for below in schema.values():
                yield from objects(below)

    found = list(objects(SCHEMA))
    assert len(found) > 20
    assert all(each.get("additionalProperties") is False for each in found if each.get("properties"))


def test_the_schema_is_one_and_the_defaults_and_examples_fit() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    validator = jsonschema.Draft7Validator(SCHEMA)
    validator.validate(VALUES)
    for name in EXAMPLES:
        validator.validate(example(name))


@pytest.mark.parametrize(
    "values",
    [
        {"worker": {}},
        {"workers": {"cpu": {"replica": 2}}},
        {"workers": {"cpu": {"autoscaling": {"kind": "vpa"}}}},
        {"workers": {"cpu": {"gpu": {"enabled": "yes"}}}},
        {"settings": {"MAX_BYTE": 1}},
        {"settings": {"BROKER_URL": "redis://:secret@redis"}},
        {"settings": {"DRAIN_SECONDS": 600}},
        {"workers": {"cpu": {"settings": {"QUEUES": "other"}}}},
        {"models": {"digests": {"imagenet": "9f" * 32}}},
        {"models": {"digests": {"imagenet@1": "latest"}}},
        {"keda": {"redis": {"address": "redis://redis:6379"}}},
        {"workers": {"cpu": {"autoscaling": {"fallbackReplicas": 0}}}},
        {"workers": {"cpu": {"resources": {"claims": [{"name": "gpu"}]}}}},
    ],
)
def test_what_the_schema_refuses(values: dict[str, Any]) -> None:
    with pytest.raises(HelmValuesError):
        render(LEAST, values)


def test_generated_files_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "helm/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_settings_in_pods_are_settings_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in EXAMPLES:
        objects = render(example(name))
        for each in (*example(name)["workers"], "exporter"):
            data = settings_of(objects, f"-{each}")
            with monkeypatch.context() as patch:
                for variable, value in data.items():
                    patch.setenv(variable, value)
                loaded = Settings.load()
            assert (loaded.http_host, loaded.http_port) == ("::", 9464)
            assert loaded.queues == ["default"]


def test_what_the_chart_decides_is_a_setting_and_cannot_be_given() -> None:
    assert {name.lower() for name in OWNED} <= set(Settings.model_fields)
    assert not OWNED & set(SCHEMA["definitions"]["settings"]["propertyNames"]["enum"])


def test_the_chart_knows_the_defaults_of_the_code() -> None:
    """It computes with them where values do not say otherwise (templates/_validate.tpl, _workers.tpl)."""
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in Settings.model_fields.items()
        if name != "model_repository"
    }
    known = {
        "lease_seconds": 60,
        "chunk_timeout_seconds": 900,
        "chunks_in_flight": 32,
        "chunk_size": 32,
        "namespace": "default",
        "transport": "atomic",
    }
    assert {name: defaults[name] for name in known} == known
    assert defaults["drain_seconds"] == VALUES["workerDefaults"]["drainSeconds"]
    assert STOCK_VISIBILITY_SECONDS == 300


def test_the_versions_are_those_of_the_package() -> None:
    from importlib.metadata import version

    described = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert described["appVersion"] == version("classifleet")


def test_what_git_and_editors_leave_behind_is_not_packed(tmp_path: Path) -> None:
    folder = tmp_path / "classifleet"
    shutil.copytree(CHART, folder)
    (folder / ".git").mkdir()
    for name in (".git/HEAD", "values.yaml~", "templates/workers.yaml.orig", "files/alerts/.classifleet.yaml.swp"):
        (folder / name).write_text("{{ left behind")
    packed = Chart.load(folder)
    assert (packed.files, packed.templates) == (chart().files, chart().templates)


def test_the_least_values_are_enough() -> None:
    assert render(merged(LEAST))
