"""KEDA reads the images that wait, from where they are, and never takes an error for a zero."""

from __future__ import annotations

import re
from typing import Any

import pytest

from classifleet.config import Keys
from classifleet.config.autoscale import target_images
from classifleet.ledger import QueueDepth
from classifleet.worker.overview import as_json
from tests.helm.support import KEDA, LEAST, Object, example, of_kind, one, render
from tests.helm.test_render import SIGNALS

DEPTH = dict.fromkeys(QueueDepth.__dataclass_fields__, 0)


def scaled(*values: dict[str, Any], **autoscaling: Any) -> Object:
    workers = {"cpu": {"pools": ["default", "slow"], "autoscaling": {**KEDA, **autoscaling}}}
    spec: Object = one(render(LEAST, {"workers": workers}, *values), "ScaledObject")["spec"]
    return spec


def gjson(content: Any, path: str) -> Any:
    """What GJSON finds under a path of names; a backslash before a dot makes it a part of the name."""
    for part in re.split(r"(?<!\\)\.", path):
        content = content[re.sub(r"\\(.)", r"\1", part)]
    return content


def formula(spec: Object, values: dict[str, float]) -> float:
    """The value of the formula; names, numbers, sums, products and the larger of two alone."""
    text = spec["advanced"]["scalingModifiers"]["formula"]
    assert re.fullmatch(r"[\w+*., ()]+", text), text
    return float(eval(text, {"__builtins__": {}, "max": max}, values))


def test_the_exporters_answer_is_found_and_summed() -> None:
    """The queues' names hold dots, and the autoscaler of Kubernetes takes the largest of several metrics."""
    spec = scaled()
    answer = {
        "queues": {
            f"classify.{pool}.{lane}": as_json(QueueDepth(**{**DEPTH, "queued_images": queued, "leased_images": 1}))
            for queued, (pool, lane) in enumerate(
                (p, each) for p in ("default", "slow") for each in ("interactive", "bulk")
            )
        }
    }
    found = {each["name"]: gjson(answer, each["metadata"]["valueLocation"]) for each in spec["triggers"]}
    assert {each["metadata"]["url"] for each in spec["triggers"]} == {
        "http://demo-classifleet-exporter.shop.svc:9464/queues.json"
    }
    assert len(found) == 8
    assert formula(spec, found) == 0 + 1 + 2 + 3 + 4
    arriving = {name: 10.5 if name.endswith("_rate") else value for name, value in found.items()}
    replicas = formula(spec, arriving) / int(spec["advanced"]["scalingModifiers"]["target"])
    assert replicas == pytest.approx(4 * 10.5 / (100 * 0.8)), "arrivals take 0.8 of what the replicas do"


@pytest.mark.parametrize("share", [None, 0])
@pytest.mark.parametrize("signal", ["exporter", "prometheus"])
def test_without_a_share_the_backlog_alone_counts(signal: str, share: float | None) -> None:
    spec = scaled(SIGNALS[signal], {"workerDefaults": {"autoscaling": {"arrivalsShare": share}}})
    assert "max" not in spec["advanced"]["scalingModifiers"]["formula"]
    assert not [each["name"] for each in spec["triggers"] if "rate" in each["name"]]
    assert scaled(SIGNALS[signal], arrivalsShare=share)["triggers"] == spec["triggers"]


def test_only_the_lanes_that_are_named_count() -> None:
    bulk, interactive = of_kind(render(example("scale-to-zero")), "ScaledObject")
    for each, lane, least in ((bulk, "bulk", 0), (interactive, "interactive", 1)):
        assert {trigger["metadata"]["valueLocation"] for trigger in each["spec"]["triggers"]} == {
            rf"queues.classify\.default\.{lane}.{figure}" for figure in ("outstanding_images", "accepted_per_second")
        }
        assert each["spec"]["minReplicaCount"] == least


def test_the_ledgers_own_keys_are_counted_as_images() -> None:
    spec = scaled(
        SIGNALS["redis"], {"settings": {"NAMESPACE": "shop", "CHUNK_SIZE": 8}}, lanes=["bulk", "interactive"]
    )
    keys = {each["name"]: each["metadata"]["listName"] for each in spec["triggers"]}
    ledger = Keys("shop")
    assert set(keys.values()) == {
        ledger.queue(f"classify.{pool}.{lane}", state)
        for pool in ("default", "slow")
        for lane in ("bulk", "interactive")
        for state in ("queued", "leased")
    }
    chunks = dict.fromkeys(keys, 0) | {
        name: 10 for name, key in keys.items() if key == ledger.queue("classify.slow.bulk", "queued")
    }
    assert formula(spec, chunks) == 10 * 8
    of_interactive = {name: int(key.endswith("interactive:leased")) for name, key in keys.items()}
    assert formula(spec, of_interactive) == 2, "a chunk of that lane is one image"
    assert {each["metadata"]["enableTLS"] for each in spec["triggers"]} == {"true"}


def test_prometheus_is_asked_for_a_sum_and_silence_is_an_error() -> None:
    spec = scaled(SIGNALS["prometheus"])
    trigger, rate = spec["triggers"]
    assert trigger["metadata"]["query"] == (
        'sum(max by (queue, state) (classifleet_outstanding_images{queue=~"classify[.](default|slow)[.]'
        '(interactive|bulk)",state=~"queued|leased",namespace="shop"}))'
    )
    assert rate["metadata"]["query"] == (
        'sum(max by (queue) (classifleet_queue_images_per_second{queue=~"classify[.](default|slow)[.]'
        '(interactive|bulk)",what="accepted",namespace="shop"}))'
    )
    for each in (trigger, rate):
        assert each["metadata"]["ignoreNullValues"] == "false"
        assert each["metadata"]["authModes"] == "bearer"
    assert formula(spec, {"images": 7000, "rate": 80}) == 7000
    assert formula(spec, {"images": 10, "rate": 160}) == 2 * int(trigger["metadata"]["threshold"])


@pytest.mark.parametrize("signal", SIGNALS)
def test_an_error_is_never_a_zero(signal: str) -> None:
    """With `replicas: 0` KEDA would take the last pod away when it cannot read the signal."""
    spec = scaled(SIGNALS[signal], minReplicas=0, fallbackReplicas=2)
    assert spec["fallback"] == {"failureThreshold": 3, "replicas": 2, "behavior": "currentReplicasIfHigher"}
    assert spec["advanced"]["scalingModifiers"]["metricType"] == "AverageValue", "what fallback works with"
    assert spec["advanced"]["scalingModifiers"]["target"].isdigit(), "KEDA ignores a fallback for any other"
    names = [each["name"] for each in spec["triggers"]]
    assert all(re.fullmatch(r"[a-z]\w*", name) for name in names)
    assert set(re.findall(r"[a-z]\w*", spec["advanced"]["scalingModifiers"]["formula"])) - {"max"} == set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("rate", "goal"), [(400, 300), (17.1, 60), (33.3, 900), (5000, 3600), (1040.5, 1)])
def test_the_target_is_that_of_the_code(rate: float, goal: float) -> None:
    spec = scaled(imagesPerSecondPerReplica=rate, drainGoalSeconds=goal)
    target = int(spec["advanced"]["scalingModifiers"]["target"])
    assert abs(target - target_images(rate, goal, 32 * 32)) <= 1, "helm computes in decimals"


def test_secrets_for_keda_are_in_a_trigger_authentication() -> None:
    workers = {"workers": {"cpu": {"autoscaling": dict(KEDA)}}}
    expected = {
        "redis": {("username", "urls", "u"), ("password", "urls", "password"), ("ca", "urls", "ca.crt")},
        "prometheus": {("bearerToken", "prometheus", "bearerToken"), ("ca", "prometheus", "ca")},
    }
    for signal, secrets in expected.items():
        objects = render(LEAST, workers, SIGNALS[signal])
        authentication = one(objects, "TriggerAuthentication")
        found = authentication["spec"]["secretTargetRef"]
        assert {(each["parameter"], each["name"], each["key"]) for each in found} == secrets
        for trigger in one(objects, "ScaledObject")["spec"]["triggers"]:
            assert trigger["authenticationRef"] == {"name": authentication["metadata"]["name"]}
    assert not of_kind(render(LEAST, workers), "TriggerAuthentication"), "the exporter asks for nothing"
    trial = {"broker": {"existingSecret": ""}, "redis": {"enabled": True}, "keda": {"signal": "redis"}}
    objects = render(LEAST, workers, trial)
    [secret] = one(objects, "TriggerAuthentication")["spec"]["secretTargetRef"]
    assert secret == {"parameter": "password", "name": "demo-classifleet-redis", "key": "password"}
    assert (
        one(objects, "ScaledObject")["spec"]["triggers"][0]["metadata"]["address"]
        == "demo-classifleet-redis.shop.svc:6379"
    )


def test_a_horizontal_pod_autoscaler_takes_cpu_or_what_it_is_given() -> None:
    def metrics(**autoscaling: Any) -> Any:
        workers = {"cpu": {"autoscaling": {"kind": "hpa", **autoscaling}}}
        return one(render(LEAST, {"workers": workers}), "HorizontalPodAutoscaler")["spec"]["metrics"]

    assert metrics()[0]["resource"]["target"] == {"type": "Utilization", "averageUtilization": 70}
    external = [
        {
            "type": "External",
            "external": {"metric": {"name": "x"}, "target": {"type": "AverageValue", "averageValue": 5}},
        }
    ]
    assert metrics(hpaMetrics=external) == external
