"""Values that contradict each other are refused, with a sentence that says what to change."""

from __future__ import annotations

from typing import Any

import pytest
from helm_python.errors import HelmRenderError

from tests.helm.support import KEDA, LEAST, merged, render

SQS = {"broker": {"type": "sqs"}, "ledger": {"existingSecret": "urls"}}
AMQP = {**SQS, "broker": {"type": "amqp"}}
ONE_POD = {"models": {"volume": {"type": "claim", "accessModes": ["ReadWriteOnce"]}}}
PROMETHEUS = {
    "exporter": {"enabled": False},
    "keda": {"signal": "prometheus", "prometheus": {"serverAddress": "http://p:9090"}},
}
BUNDLED = {"broker": {"existingSecret": ""}, "redis": {"enabled": True}}


def cpu(**values: Any) -> dict[str, Any]:
    return {"workers": {"cpu": values}}


def limited(cpu_: str | float, **more: Any) -> dict[str, Any]:
    return cpu(resources={"limits": {"cpu": cpu_, **more}})


def keda(**values: Any) -> dict[str, Any]:
    return cpu(autoscaling={**KEDA, **values})


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"broker": {"existingSecret": ""}}, "broker.existingSecret: there is no broker; name the Secret"),
    ({"redis": {"enabled": True}}, "set redis.enabled: false, or remove broker.existingSecret"),
    ({**BUNDLED, "broker": {"existingSecret": "", "type": "amqp"}}, "set broker.type: redis, or redis.enabled: false"),
    (
        {"broker": {"existingSecret": ""}, "redis": {"enabled": True, "cpu": "50m"}},
        "redis.cpu is 50m, and its pod asks for 100m; raise it",
    ),
    ({"broker": {"type": "amqp"}}, "ledger.existingSecret: the broker is amqp, and the ledger needs a Redis"),
    (
        {"exporter": {"enabled": False}, "monitoring": {"rules": {"enabled": True}}},
        "monitoring.rules.enabled: the alerts read the exporter's figures, and ClassifleetExporterAway would never "
        "end; set exporter.enabled: true, or monitoring.rules.enabled: false",
    ),
    ({"networkPolicy": {"egress": {"enabled": True}}}, "no rule leads to the broker and the ledger; add one"),
    ({"models": {"source": ""}}, "the volume starts empty and nothing brings models to it; set models.source"),
    ({"models": {"source": "", "volume": {"type": "claim"}}}, "the volume starts empty"),
    ({"models": {"build": ["imagenet"]}}, "source and build are both set"),
    ({"models": {"volume": {"type": "claim", "existingClaim": "m", "readOnly": True}}}, "set readOnly: false"),
    (
        {"models": {"source": "", "digests": {"a@1": "0" * 64}, "volume": {"type": "hostPath"}}},
        "models.digests: they are checked when models are fetched; set models.source",
    ),
    (cpu(strategy={"rollingUpdate": {"maxUnavailable": 0}}), "workers.cpu: strategy.rollingUpdate lets no pod come"),
    ({"models": {"digests": {"a@1": "0" * 64}}}, "workers.cpu: models is empty, so that all are loaded"),
    (
        {"models": {"digests": {"a@1": "0" * 64}}, **cpu(models=["a@1", "a"])},
        "workers.cpu: models has a, and models.digests has not; name a version, and add its sha256 there",
    ),
    ({**ONE_POD, **cpu(replicas=2)}, "more than one pod for one volume; use ReadWriteMany"),
    (
        {**ONE_POD, **cpu(strategy={"rollingUpdate": {"maxSurge": 1}})},
        "workers.cpu: strategy.rollingUpdate.maxSurge is 1, and a second pod cannot have the volume while the first "
        "has it (models.volume.accessModes); set maxSurge: 0 and maxUnavailable: 1, or use ReadWriteMany",
    ),
    (
        {"models": {"volume": {"existingClaim": "m"}}},
        "models.volume.existingClaim is set, and models.volume.type is emptyDir, which has no claim; set "
        "models.volume.type: claim, or remove existingClaim",
    ),
    (
        limited("1"),
        "workers.cpu: resources.requests.cpu (2) is above resources.limits.cpu (1); lower it, or raise the other (one "
        "that is not given is that of the defaults)",
    ),
    (limited(1.9), "resources.requests.cpu (2) is above resources.limits.cpu (1.9)"),
    (limited("1999m"), "resources.requests.cpu (2) is above resources.limits.cpu (1999m)"),
    (limited(4, memory="4294M"), "resources.requests.memory (4Gi) is above resources.limits.memory (4294M)"),
    (limited(4, memory=4294967295), "resources.requests.memory (4Gi) is above resources.limits.memory"),
    (limited(4, **{"ephemeral-storage": "4095Mi"}), "resources.requests.ephemeral-storage (4Gi) is above"),
    ({"exporter": {"resources": {"limits": {"cpu": "50m"}}}}, "exporter: resources.requests.cpu (100m) is above"),
    (
        cpu(terminationGracePeriodSeconds=60),
        "workers.cpu: terminationGracePeriodSeconds is 60, and a drain takes up to 90 (drainSeconds + 30), so that "
        "Kubernetes would kill chunks at work; raise it, or lower drainSeconds",
    ),
    (cpu(drainSeconds=1000), "no chunk is at work for longer than CHUNK_TIMEOUT_SECONDS (900); lower drainSeconds"),
    (
        {**SQS, "settings": {"LEASE_SECONDS": 300}},
        "LEASE_SECONDS is 300, and this broker gives a message to another worker after 300 s (its visibility "
        "timeout), while the lease still holds; set LEASE_SECONDS below 300",
    ),
    (cpu(settings={"LEASE_SECONDS": 400, "TRANSPORT": "stock"}), "set LEASE_SECONDS below 300"),
    (
        {**AMQP, **cpu(settings={"CHUNK_TIMEOUT_SECONDS": 1800})},
        "CHUNK_TIMEOUT_SECONDS is 1800, and RabbitMQ gives a message to another worker if none has acknowledged it "
        "after 1800 s (its consumer_timeout), while the chunk may be at work; set CHUNK_TIMEOUT_SECONDS below 1800",
    ),
    *(
        (
            cpu(settings={name: value}),
            f"settings.{name} is of one class, and the exporter and other classes would not know it; write it into",
        )
        for name, value in (("NAMESPACE", "b"), ("OBJECTIVE_SECONDS", "default=60"), ("POOLS", "m=slow"))
    ),
    (
        cpu(autoscaling={"minReplicas": 3, "maxReplicas": 5}),
        "workers.cpu: autoscaling.kind is not set, so that its other keys (maxReplicas, minReplicas) do nothing; set "
        "it to keda or hpa, or remove the others",
    ),
    (cpu(replicas=2, autoscaling=KEDA), "replicas is set, and the autoscaler decides about replicas; remove it"),
    (keda(minReplicas=11), "autoscaling.minReplicas (11) is above maxReplicas (10)"),
    (keda(fallbackReplicas=11), "autoscaling.fallbackReplicas (11) is above maxReplicas (10)"),
    (cpu(autoscaling={"kind": "hpa", "minReplicas": 0}), "cannot wake a class from zero; set it to 1, or"),
    (
        {**keda(minReplicas=0), "exporter": {"enabled": False}},
        "at zero workers nothing would look after the ledger; set exporter.enabled: true, or minReplicas: 1",
    ),
    ({**keda(), "exporter": {"enabled": False}}, "keda.signal is exporter, and exporter.enabled is false"),
    (keda(imagesPerSecondPerReplica=None), "autoscaling.imagesPerSecondPerReplica is not set; measure"),
    (
        keda(imagesPerSecondPerReplica=10),
        "the target is 600 images a replica (imagesPerSecondPerReplica * drainGoalSeconds), and one replica holds up "
        "to 1024 at a time (CHUNKS_IN_FLIGHT * CHUNK_SIZE), so that more would start than find work; raise "
        "drainGoalSeconds, or lower CHUNKS_IN_FLIGHT",
    ),
    ({**keda(), "settings": {"CHUNK_SIZE": 256}}, "holds up to 8192 at a time"),
    ({**keda(), "keda": {"signal": "redis"}}, "keda.redis.address: keda.signal is redis, and KEDA takes no URL"),
    (
        {**keda(arrivalsShare=0.5), "keda": {"signal": "redis", "redis": {"address": "r:1"}}},
        "workers.cpu: autoscaling.arrivalsShare is set, and keda.signal is redis, which has no figure of arrivals",
    ),
    ({**keda(), "keda": {"signal": "prometheus"}}, "keda.prometheus.serverAddress: keda.signal is prometheus"),
    (
        {**keda(), **PROMETHEUS},
        "workers.cpu: keda.signal is prometheus, and exporter.enabled is false, so that nothing here shows Prometheus "
        "what waits; set exporter.enabled: true, or keda.prometheus.matchers to those of another exporter",
    ),
]


@pytest.mark.parametrize(
    ("values", "sentence"), CONTRADICTIONS, ids=lambda each: each[:40] if isinstance(each, str) else ""
)
def test_a_contradiction_is_refused_with_a_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HelmRenderError) as caught:
        render(LEAST, values)
    assert sentence in str(caught.value)


def test_a_fleet_without_a_class_is_refused() -> None:
    without = {name: value for name, value in LEAST.items() if name != "workers"}
    with pytest.raises(HelmRenderError, match="workers: there is no class of workers; name at least one"):
        render(without)


@pytest.mark.parametrize(
    "values",
    [
        cpu(terminationGracePeriodSeconds=90),
        cpu(drainSeconds=0, terminationGracePeriodSeconds=30),
        cpu(drainSeconds=1000, settings={"CHUNK_TIMEOUT_SECONDS": 1200}),
        {**SQS, "settings": {"LEASE_SECONDS": 299, "CHUNK_TIMEOUT_SECONDS": 3600}},
        {**AMQP, "settings": {"CHUNK_TIMEOUT_SECONDS": 1799}},
        cpu(settings={"LEASE_SECONDS": 400}),
        keda(imagesPerSecondPerReplica=17.1),
        keda(imagesPerSecondPerReplica=10, lanes=["interactive"]),
        {
            **cpu(autoscaling={**KEDA, "minReplicas": 1}),
            "exporter": {"enabled": False},
            "keda": {"signal": "redis", "redis": {"address": "r:1"}},
        },
        {"models": {"source": "", "volume": {"type": "hostPath"}}},
        ONE_POD,
        {**ONE_POD, **cpu(strategy={"rollingUpdate": {"maxSurge": "0%"}})},
        {**ONE_POD, **cpu(strategy={"type": "Recreate"})},
        limited(2, memory="4Gi"),
        limited("2000m", memory="4295M"),
        limited(2.5, memory=4294967296),
        cpu(resources={"requests": {"cpu": "0.5", "memory": "1T"}, "limits": {"cpu": "500m", "memory": "1Ti"}}),
        cpu(autoscaling={"kind": "none", "minReplicas": 3}),
        {"workerDefaults": {"autoscaling": {"kind": "hpa"}}, **cpu(autoscaling={"minReplicas": 3})},
        merged(keda(), PROMETHEUS, {"keda": {"prometheus": {"matchers": 'namespace="a"'}}}),
        {**BUNDLED, "networkPolicy": {"egress": {"enabled": True}}},
    ],
)
def test_what_is_right_beside_the_border(values: dict[str, Any]) -> None:
    assert render(LEAST, values)
