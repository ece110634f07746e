"""Rendering the chart without a cluster, and judging what comes out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "classifleet"
CRDS = ROOT.parent / "shared" / "data" / "crds"
EXAMPLES = {path.stem: path for path in sorted((CHART / "examples").glob("*.yaml"))}
KUBERNETES = "1.37"
VARIANTS = ("exporter", "cpu", "cuda")  # of images

Object = dict[str, Any]

LEAST: Mapping[str, Any] = {
    "broker": {"existingSecret": "urls"},
    "models": {"source": "s3://models"},
    "workers": {"cpu": {}},
}
KEDA: Mapping[str, Any] = {"kind": "keda", "imagesPerSecondPerReplica": 100, "drainGoalSeconds": 60}


@cache
def chart() -> Chart:
    """The chart, loaded once."""
    return Chart.load(CHART)


def example(name: str) -> dict[str, Any]:
    """The values of an example."""
    values: dict[str, Any] = yaml.safe_load(EXAMPLES[name].read_text())
    return values


def merged(*values: Mapping[str, Any]) -> dict[str, Any]:
    """Values over values, as `helm` merges them."""
    result: dict[str, Any] = {}
    for each in values:
        for key, value in each.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else deepcopy(value)
    return result


def render(*values: Mapping[str, Any], name: str = "demo", namespace: str = "shop") -> list[Object]:
    """All objects that these values make."""
    rendered = chart().render(merged(*values), name=name, namespace=namespace)
    texts = [text for path, text in sorted(rendered.items()) if not path.endswith("NOTES.txt")]
    return [each for text in texts for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]


def notes(*values: Mapping[str, Any]) -> str:
    """What `helm install` says after it."""
    rendered = chart().render(merged(*values), name="demo", namespace="shop")
    [text] = [text for path, text in rendered.items() if path.endswith("NOTES.txt")]
    return text


def of_kind(objects: list[Object], kind: str, name: str = "") -> list[Object]:
    """Those of a kind, and with a name that ends so."""
    return [each for each in objects if each["kind"] == kind and each["metadata"]["name"].endswith(name)]


def one(objects: list[Object], kind: str, name: str = "") -> Object:
    """The only one of them."""
    [found] = of_kind(objects, kind, name)
    return found


def pod_specs(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """The pods of all Deployments, by name."""
    for each in of_kind(objects, "Deployment"):
        yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def containers(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """All containers, also those that run first, by the names of Deployment and container."""
    for name, spec in pod_specs(objects):
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            yield f"{name}/{container['name']}", container


def settings_of(objects: list[Object], name: str) -> dict[str, str]:
    """What the ConfigMap of a class, or of the exporter, holds."""
    data: dict[str, str] = one(objects, "ConfigMap", name)["data"]
    return data


def check(*things: Object) -> None:
    """They are what Kubernetes, or the CRDs of their kinds, accept; unknown fields are errors.

    Those with a CRD come last: where the CRDs are not at hand the test is skipped there.
    """
    for thing in sorted(things, key=_has_crd):
        assert {type(thing["metadata"][key]) for key in ("name", "namespace")} == {str}, thing["metadata"]
        if _has_crd(thing):
            jsonschema.Draft7Validator(_crd(thing["kind"])).validate(thing)
        else:
            _validate_core(json.dumps({**thing, "metadata": {**thing["metadata"], "name": "x"}}))


def _has_crd(thing: Object) -> bool:
    return thing["apiVersion"].startswith(("keda.sh/", "monitoring.coreos.com/"))


@cache
def _validate_core(text: str) -> None:
    kubernetes_validate.validate(json.loads(text), KUBERNETES, strict=True)


@cache
def _crd(kind: str) -> Object:
    for path in sorted(CRDS.glob("*.yaml")):
        for content in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader):
            if content and content["spec"]["names"]["kind"] == kind:
                [version] = [each for each in content["spec"]["versions"] if each["storage"]]
                return _strict(version["schema"]["openAPIV3Schema"])
    pytest.skip(f"the CRD of {kind} is not in {CRDS}")  # in CI, too: it is no part of the project


def _strict(schema: Any) -> Any:
    """With `additionalProperties: false` wherever properties are named; metadata is checked elsewhere."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _strict(value) for key, value in schema.items()}
    if isinstance(result.get("properties"), dict) and "additionalProperties" not in result:
        result["additionalProperties"] = False
    return result
