"""What the chart makes is what Kubernetes and the operators accept, for every example and a matrix of values."""

from __future__ import annotations

import itertools
import re
from typing import Any

import helm_python
import jsonschema
import pytest
from helm_python.errors import HelmValuesError

from tests.helm.support import (
    CHART,
    EXAMPLES,
    KEDA,
    LEAST,
    VARIANTS,
    chart,
    check,
    example,
    merged,
    of_kind,
    one,
    render,
    settings_of,
)

CLASSES: dict[str, dict[str, Any]] = {
    "plain": {"replicas": 3},
    "keda": {
        "gpu": {"enabled": True, "resourceName": "nvidia.com/mig-1g.10gb"},
        "autoscaling": {**KEDA, "minReplicas": 0},
    },
    "hpa": {"autoscaling": {"kind": "hpa"}, "strategy": {"type": "Recreate"}},
}
VOLUMES: dict[str, dict[str, Any]] = {
    "emptyDir": {},
    "claim": {"volume": {"type": "claim"}},
    "existing": {"source": "", "volume": {"type": "claim", "existingClaim": "models", "readOnly": True}},
    "hostPath": {"volume": {"type": "hostPath"}},
}
SIGNALS: dict[str, dict[str, Any]] = {
    "exporter": {},
    "redis": {
        "keda": {
            "signal": "redis",
            "redis": {
                "address": "redis:6379",
                "tls": True,
                "existingSecret": "urls",
                "caKey": "ca.crt",
                "usernameKey": "u",
            },
        }
    },
    "prometheus": {
        "keda": {
            "signal": "prometheus",
            "prometheus": {
                "serverAddress": "https://prometheus:9090",
                "authModes": "bearer",
                "existingSecret": "prometheus",
                "parameters": ["bearerToken", "ca"],
            },
        }
    },
}
BROKERS: dict[str, dict[str, Any]] = {
    "redis": {},
    "sqs": {"broker": {"type": "sqs"}, "ledger": {"existingSecret": "urls"}},
    "bundled": {"broker": {"existingSecret": ""}, "redis": {"enabled": True, "persistence": {"enabled": False}}},
}
# Each pair of two of these meets at least once.
PAIRS = [
    (volume, signal, [*BROKERS][(i + j) % len(BROKERS)])
    for (i, volume), (j, signal) in itertools.product(enumerate(VOLUMES), enumerate(SIGNALS))
]
EVERYTHING: dict[str, Any] = {
    "commonLabels": {"team": "vision"},
    "extraEnv": [{"name": "SSL_CERT_FILE", "value": "/etc/ca/ca.crt"}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
    "image": {"registry": "ghcr.io/example", "pullSecrets": [{"name": "pull"}]},
    "s3": {"existingSecret": "s3", "region": "eu-west-1"},
    "networkPolicy": {
        "egress": {"enabled": True, "to": [{"ports": [{"port": 6379}]}]}, "metricsFrom": [{"podSelector": {}}]
    },
    "monitoring": {"podMonitor": {"enabled": True}, "rules": {"enabled": True}, "dashboards": {"enabled": True}},
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn"}},
    "workerDefaults": {
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "runtimeClassName": "nvidia",
        "priorityClassName": "bulk",
        "podAnnotations": {"a/b": "c"},
        "podLabels": {"azure.workload.identity/use": "true"},
        "spread": ["kubernetes.io/hostname", "topology.kubernetes.io/zone"],
    },
    "exporter": {
        "replicas": 2, "podAnnotations": {"a/b": "c"}, "priorityClassName": "high", "tolerations": [{"key": "x"}]
    },
    "keda": {"annotations": {"autoscaling.keda.sh/paused": "true"}},
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_clean(name: str) -> None:
    report = helm_python.lint(CHART, example(name), strict=True, kube_version="v1.37.0")
    assert (report["messages"], report["errors"]) == ([], [])
    objects = render(example(name))
    assert of_kind(objects, "Deployment")
    check(*objects)


@pytest.mark.parametrize(("volume", "signal", "broker"), PAIRS)
def test_a_matrix_of_values(volume: str, signal: str, broker: str) -> None:
    values = merged(LEAST, {"models": VOLUMES[volume], "workers": CLASSES}, SIGNALS[signal], BROKERS[broker])
    check(*render(values), *render(values, EVERYTHING))


def test_the_defaults_alone_pass_the_linter() -> None:
    assert helm_python.lint(CHART, strict=True)["messages"] == []


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("ScaledObject", lambda spec: spec.update(minReplicas=1)),
        ("ScaledObject", lambda spec: spec["fallback"].update(behavior="sometimes")),
        ("ScaledObject", lambda spec: spec["triggers"][0]["metadata"].update(targetValue=5)),
        ("PodMonitor", lambda spec: spec["podMetricsEndpoints"][0].update(ports="http")),
        ("Deployment", lambda spec: spec["template"]["spec"].update(enableServiceLink=False)),
    ],
)
def test_the_checks_can_see(kind: str, change: Any) -> None:
    """A misspelt key, a bad word, a number where text must be: or all of the above would prove nothing."""
    found = of_kind(render(example("scale-to-zero")), kind)[0]
    check(found)
    change(found["spec"])
    with pytest.raises(
        (jsonschema.ValidationError, Exception), match=r"unexpected|not one of|not of type|unevaluated"
    ):
        check(found)


def test_names_stay_within_what_kubernetes_takes() -> None:
    objects = render(LEAST, {"workers": {"a" * 20: {}}, "monitoring": EVERYTHING["monitoring"]}, name="r" * 53)
    assert max(len(each["metadata"]["name"]) for each in objects) <= 63
    for name in ("exporter", "cpu-hpa", "a" * 21):
        with pytest.raises(HelmValuesError, match="invalid propertyName"):
            render(LEAST, {"workers": {name: {}}})


def test_names_that_look_like_numbers_or_domains_are_names() -> None:
    digits = {
        "fullnameOverride": "12",
        "nameOverride": "34",
        "broker": {"existingSecret": "56"},
        "serviceAccount": {"name": "78"},
        "image": {"references": dict.fromkeys(VARIANTS, "90")},
        "models": {"volume": {"type": "claim", "storageClassName": "1"}},
        "workerDefaults": {"priorityClassName": "2", "runtimeClassName": "3", "spread": ["4"]},
        "exporter": {"priorityClassName": "6"},
    }
    claim = {"models": {"volume": {"existingClaim": "7"}}}
    for values in ((), (EVERYTHING,), (EVERYTHING, digits), (EVERYTHING, digits, claim)):
        check(*render(LEAST, {"workers": CLASSES}, *values, name="123", namespace="456"))
    trial = {"redis": {"image": "8", "persistence": {"enabled": True, "storageClassName": "9"}}}
    check(*render(LEAST, BROKERS["bundled"], trial, name="123", namespace="456"))
    assert not [each for each in render(LEAST, name="my.release") if "." in each["metadata"]["name"]]


def test_no_two_objects_share_a_name_and_all_are_in_the_namespace() -> None:
    for values in (EVERYTHING, BROKERS["bundled"], {}):
        objects = render(LEAST, {"workers": CLASSES}, values)
        names = [(each["kind"], each["metadata"]["name"]) for each in objects]
        assert len(set(names)) == len(names)
        assert {each["metadata"]["namespace"] for each in objects} == {"shop"}


def test_settings_keep_their_values() -> None:
    """Helm reads numbers as floats, and prints large ones as 5.36870912e+08."""
    values = {
        "settings": {
            "MAX_BYTES": 536870912,
            "SANDBOX_SECONDS": 2.5,
            "DECODE_EXACT": True,
            "SINK_ALLOW": "s3://a,s3://b",
        }
    }
    data = settings_of(render(LEAST, values), "-cpu")
    assert data["CLASSIFLEET_MAX_BYTES"] == "536870912"
    assert data["CLASSIFLEET_SANDBOX_SECONDS"] == "2.5"
    assert data["CLASSIFLEET_DECODE_EXACT"] == "true"
    assert data["CLASSIFLEET_SINK_ALLOW"] == "s3://a,s3://b"


def test_a_class_is_the_defaults_and_its_own_words() -> None:
    values = {
        "settings": {"MAX_BATCH": 8},
        "workers": {"cpu": {"settings": {"MAX_BATCH": 16}}, "other": {"pools": ["a", "b"]}},
    }
    objects = render(LEAST, values)
    assert settings_of(objects, "-cpu")["CLASSIFLEET_MAX_BATCH"] == "16"
    assert settings_of(objects, "-other")["CLASSIFLEET_MAX_BATCH"] == "8"
    assert settings_of(objects, "-other")["CLASSIFLEET_QUEUES"] == "a,b"
    assert settings_of(objects, "-exporter")["CLASSIFLEET_QUEUES"] == "a,b,default", (
        "it shows the queues of all classes"
    )


def test_images() -> None:
    def images(*values: dict[str, Any]) -> dict[str, str]:
        classes = {"gpu": {"gpu": {"enabled": True}}}
        deployments = of_kind(render(LEAST, {"workers": classes}, *values), "Deployment")
        return {
            each["metadata"]["name"].rpartition("-")[2]: each["spec"]["template"]["spec"]["containers"][0]["image"]
            for each in deployments
        }

    assert images() == {
        "cpu": "classifleet:0.1.0-cpu", "gpu": "classifleet:0.1.0-cuda", "exporter": "classifleet:0.1.0-exporter"
    }  # fmt: skip
    made = images({"image": {"registry": "ghcr.io", "tag": "v2", "references": {"cuda": "me/worker@sha256:1"}}})
    assert made == {
        "cpu": "ghcr.io/classifleet:v2-cpu",
        "gpu": "me/worker@sha256:1",
        "exporter": "ghcr.io/classifleet:v2-exporter",
    }


def test_models_are_fetched_by_digest() -> None:
    digest = "9f" * 32
    classes = {"cpu": {"models": ["imagenet@1"]}, "other": {"models": ["nsfw@1"]}}
    values = {"models": {"digests": {"imagenet@1": digest, "nsfw@1": "0" * 64}}, "workers": classes}
    deployment = one(render(LEAST, values), "Deployment", "-cpu")
    [container] = deployment["spec"]["template"]["spec"]["initContainers"]
    assert container["args"] == [
        *("models", "fetch", "s3://models", "imagenet@1"), f"--pin=imagenet@1={digest}", "--repository=/models"
    ], "a digest of another class would roll this one"  # fmt: skip
    existing = render(LEAST, {"models": VOLUMES["existing"]})
    assert "initContainers" not in one(existing, "Deployment", "-cpu")["spec"]["template"]["spec"]
    assert settings_of(existing, "-cpu")["CLASSIFLEET_TUNING_CACHE"] == "/tmp/tuning"


def test_the_init_container_speaks_the_language_of_the_command() -> None:
    """Its arguments are options of `classifleet models fetch` and `build`."""
    import typer.main

    from classifleet.worker.models.cli import app

    group = typer.main.get_command(app)
    for values in ({}, {"models": {"source": "", "build": ["imagenet"]}}):
        objects = render(LEAST, {"workers": {"cpu": {"models": ["imagenet"]}}}, values)
        [container] = one(objects, "Deployment", "-cpu")["spec"]["template"]["spec"]["initContainers"]
        _, name, *arguments = container["args"]
        command = group.commands[name]  # type: ignore[attr-defined]
        context = command.make_context(name, arguments)
        assert context.params["repository"] == "/models"


def test_labels_of_the_values_do_not_stand_beside_ours() -> None:
    """A key that is there twice is an error for Kubernetes; what selects pods is always ours."""
    ours = {"app.kubernetes.io/instance": "other", "release": "prometheus"}
    values = {"commonLabels": ours, "monitoring": {"podMonitor": {"enabled": True, "labels": ours}}}
    rendered = chart().render(merged(LEAST, values), name="demo", namespace="shop")
    for text in rendered.values():
        for block in re.findall(r"labels:\n((?: +\S+: \S+\n)+)", text, re.IGNORECASE):
            keys = re.findall(r"^ +(\S+):", block, re.MULTILINE)
            assert len(set(keys)) == len(keys), block
    objects = render(LEAST, values)
    assert one(objects, "PodMonitor")["metadata"]["labels"]["app.kubernetes.io/instance"] == "other"
    assert one(objects, "Deployment", "-cpu")["metadata"]["labels"]["app.kubernetes.io/instance"] == "demo"
