"""What values say is in the objects: in its place, unchanged, and for every pod that it is about."""

from __future__ import annotations

import pytest

from tests.helm.support import KEDA, LEAST, Object, containers, merged, of_kind, one, render, settings_of
from tests.helm.test_render import BROKERS, CLASSES, EVERYTHING, SIGNALS

RESOURCES = {
    "requests": {"cpu": "3", "memory": "5Gi", "ephemeral-storage": "6Gi"},
    "limits": {"cpu": "7", "memory": "8Gi"},
}
DEFAULTS = {
    **EVERYTHING["workerDefaults"],
    "resources": RESOURCES,
    "tmpSize": "3Gi",
    "startupSeconds": 301,
    "progressDeadlineSeconds": 777,
    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 2}},
    "podDisruptionBudget": {"maxUnavailable": "20%"},
}
GIVEN = merged(LEAST, EVERYTHING, {"workers": CLASSES, "workerDefaults": DEFAULTS})
WORKERS = ("cpu", *CLASSES)
PLACE = {
    "nodeSelector": {"spot": "no"},
    "tolerations": [{"key": "x", "operator": "Exists"}],
    "affinity": {"podAffinity": {}},
    "priorityClassName": "high",
}
EXPORTER = {
    **PLACE,
    "podLabels": {"p": "q"},
    "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "3", "memory": "4Gi"}},
}
BEHAVIOR = {
    "scaleUp": {"policies": [{"type": "Pods", "value": 3, "periodSeconds": 15}]},
    "scaleDown": {
        "stabilizationWindowSeconds": 60,
        "policies": [{"type": "Percent", "value": 5, "periodSeconds": 90}],
    },
}
SCALING = {"minReplicas": 2, "maxReplicas": 17, "behavior": BEHAVIOR}
LEDGER = {"ledger": {"existingSecret": "truth", "key": "url"}}
FROM_SECRET = {
    "CLASSIFLEET_BROKER_URL": ("urls", "broker-url"),
    "CLASSIFLEET_REDIS_URL": ("truth", "url"),
    "AWS_ACCESS_KEY_ID": ("s3", "id"),
    "AWS_SECRET_ACCESS_KEY": ("s3", "secret"),
}
AS_GIVEN = {"AWS_DEFAULT_REGION": "eu-west-1", "SSL_CERT_FILE": "/etc/ca/ca.crt"}


@pytest.fixture(scope="module")
def fleet() -> list[Object]:
    keys = {"accessKeyIdKey": "id", "secretAccessKeyKey": "secret"}
    return render(GIVEN, {"exporter": EXPORTER, "s3": keys, **LEDGER, "image": {"pullPolicy": "Always"}})


@pytest.fixture(params=WORKERS)
def worker(fleet: list[Object], request: pytest.FixtureRequest) -> Object:
    """The Deployment of each class."""
    return one(fleet, "Deployment", f"-{request.param}")


def pod_of(deployment: Object) -> Object:
    spec: Object = deployment["spec"]["template"]["spec"]
    return spec


def named(things: list[Object]) -> dict[str, Object]:
    return {each["name"]: {key: value for key, value in each.items() if key != "name"} for each in things}


def test_where_a_worker_runs_and_as_whom(worker: Object) -> None:
    expected = {
        **{key: DEFAULTS[key] for key in ("nodeSelector", "tolerations", "affinity", "runtimeClassName")},
        "priorityClassName": DEFAULTS["priorityClassName"],
        "imagePullSecrets": EVERYTHING["image"]["pullSecrets"],
        "serviceAccountName": "demo-classifleet",
        "topologySpreadConstraints": [
            {
                "topologyKey": key,
                "maxSkew": 1,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": worker["spec"]["selector"],
                "matchLabelKeys": ["pod-template-hash"],
            }
            for key in DEFAULTS["spread"]
        ],
    }
    assert {key: pod_of(worker).get(key) for key in expected} == expected


def test_where_the_exporter_and_the_trial_redis_run(fleet: list[Object]) -> None:
    exporter = pod_of(one(fleet, "Deployment", "-exporter"))
    expected = {**PLACE, "imagePullSecrets": [{"name": "pull"}], "serviceAccountName": "demo-classifleet"}
    assert {key: exporter.get(key) for key in expected} == expected
    place = {key: PLACE[key] for key in ("nodeSelector", "tolerations")}
    redis = pod_of(one(render(LEAST, BROKERS["bundled"], {"redis": place}), "Deployment", "-redis"))
    assert {key: redis.get(key) for key in place} == place


def test_a_pod_has_what_was_said_and_no_more() -> None:
    for deployment in of_kind(render(LEAST, BROKERS["bundled"]), "Deployment"):
        unsaid = {*PLACE, "runtimeClassName", "imagePullSecrets"} & set(pod_of(deployment))
        assert not unsaid, deployment["metadata"]["name"]
    own = render(GIVEN, {"workers": {"plain": {"nodeSelector": {"gpu": "no"}, "priorityClassName": "low"}}})
    assert pod_of(one(own, "Deployment", "-plain"))["nodeSelector"] == {"gpu": "no"}
    assert {pod_of(one(own, "Deployment", f"-{name}"))["priorityClassName"] for name in ("plain", "hpa")} == {
        *("low", "bulk")
    }


def test_labels_and_annotations(fleet: list[Object], worker: Object) -> None:
    metadata = worker["spec"]["template"]["metadata"]
    assert metadata["annotations"].items() >= DEFAULTS["podAnnotations"].items()
    assert metadata["labels"].items() >= {**DEFAULTS["podLabels"], "team": "vision"}.items()
    exporter = one(fleet, "Deployment", "-exporter")["spec"]["template"]["metadata"]
    assert exporter["annotations"].items() >= EVERYTHING["exporter"]["podAnnotations"].items()
    assert exporter["labels"].items() >= {"p": "q", "team": "vision"}.items()
    assert all(each["metadata"]["labels"]["team"] == "vision" for each in fleet)


def test_what_containers_take(fleet: list[Object]) -> None:
    gpu = {**RESOURCES, "limits": {**RESOURCES["limits"], "nvidia.com/mig-1g.10gb": 1}}
    special = {"demo-classifleet-keda/worker": gpu, "demo-classifleet-exporter/exporter": EXPORTER["resources"]}
    for name, each in containers(fleet):
        assert each["imagePullPolicy"] == "Always", name
        assert each["resources"] == special.get(name, RESOURCES), name


@pytest.mark.parametrize("container", ["worker", "models", "exporter"])
def test_the_environment_and_the_volumes_of_containers(fleet: list[Object], container: str) -> None:
    found = {name: each for name, each in containers(fleet) if name.endswith(f"/{container}")}
    assert len(found) == (1 if container == "exporter" else len(WORKERS))
    for name, each in found.items():
        env = named(each["env"])
        for variable, (secret, key) in FROM_SECRET.items():
            if not (container == "models" and variable.startswith("CLASSIFLEET_")):
                assert env.pop(variable) == {"valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}, name
        assert env == {variable: {"value": value} for variable, value in AS_GIVEN.items()}, name
        [settings] = each["envFrom"]
        assert settings == {"configMapRef": {"name": name.partition("/")[0]}}
        assert named(each["volumeMounts"])["ca"] == {"mountPath": "/etc/ca"}, name


def test_volumes_and_the_time_that_things_may_take(worker: Object) -> None:
    volumes = named(pod_of(worker)["volumes"])
    assert volumes["tmp"] == {"emptyDir": {"sizeLimit": "3Gi"}}
    assert volumes["ca"] == {"configMap": {"name": "ca"}}
    probe = pod_of(worker)["containers"][0]["startupProbe"]
    assert probe["failureThreshold"] == 61, "301 s, up to whole looks"
    assert probe["periodSeconds"] == 5
    assert worker["spec"]["progressDeadlineSeconds"] == 777
    recreated = worker["metadata"]["name"].endswith("-hpa")
    assert worker["spec"]["strategy"] == ({"type": "Recreate"} if recreated else DEFAULTS["strategy"])


@pytest.mark.parametrize(
    ("volume", "mounted", "claimed"),
    [
        ({"size": "20Gi"}, {"emptyDir": {"sizeLimit": "20Gi"}}, {}),
        ({"type": "hostPath", "hostPath": "/mnt/m"}, {"hostPath": {"path": "/mnt/m", "type": "Directory"}}, {}),
        (
            {"type": "claim", "existingClaim": "mine", "readOnly": True},
            {"persistentVolumeClaim": {"claimName": "mine", "readOnly": True}},
            {},
        ),
        (
            {"type": "claim"},
            {"persistentVolumeClaim": {"claimName": "demo-classifleet-models", "readOnly": False}},
            {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "10Gi"}}},
        ),
        (
            {"type": "claim", "size": "20Gi", "storageClassName": "efs", "accessModes": ["ReadWriteOnce"]},
            {"persistentVolumeClaim": {"claimName": "demo-classifleet-models", "readOnly": False}},
            {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "efs",
                "resources": {"requests": {"storage": "20Gi"}},
            },
        ),
    ],
)
def test_the_volume_of_the_models(volume: Object, mounted: Object, claimed: Object) -> None:
    source = "" if volume.get("readOnly") else "s3://models"
    objects = render(LEAST, {"models": {"source": source, "volume": volume}})
    pod = pod_of(one(objects, "Deployment", "-cpu"))
    assert named(pod["volumes"])["models"] == mounted
    mount = named(pod["containers"][0]["volumeMounts"])["models"]
    assert mount == {"mountPath": "/models", "readOnly": volume.get("readOnly", False)}
    assert [each["spec"] for each in of_kind(objects, "PersistentVolumeClaim")] == ([claimed] if claimed else [])


def test_a_worker_is_told_its_models_device_and_repository() -> None:
    classes = {"cpu": {"models": ["a@1", "b"]}, "gpu": {"gpu": {"enabled": True}}}
    objects = render(LEAST, {"workers": classes})
    for name, models, device in (("cpu", "a@1,b", "cpu"), ("gpu", "", "cuda")):
        data = settings_of(objects, f"-{name}")
        told = {key: data[f"CLASSIFLEET_{key}"] for key in ("MODELS", "DEVICE", "MODEL_REPOSITORY")}
        assert told == {"MODELS": models, "DEVICE": device, "MODEL_REPOSITORY": "/models"}


def test_the_identity(fleet: list[Object]) -> None:
    account = one(fleet, "ServiceAccount")
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": "arn"}
    assert account["automountServiceAccountToken"] is False
    for values, name in (({"create": False}, "default"), ({"create": False, "name": "mine"}, "mine")):
        objects = render(LEAST, {"serviceAccount": values})
        assert not of_kind(objects, "ServiceAccount")
        assert {pod_of(each)["serviceAccountName"] for each in of_kind(objects, "Deployment")} == {name}


def test_the_figures_of_keda() -> None:
    keda = {"pollingInterval": 7, "cooldownPeriod": 2000000, "failureThreshold": 9, "annotations": {"a/b": "c"}}
    found = one(
        render(LEAST, {"workers": {"cpu": {"autoscaling": {**KEDA, **SCALING}}}, "keda": keda}), "ScaledObject"
    )
    assert found["metadata"]["annotations"] == keda["annotations"]
    spec = {key: value for key, value in found["spec"].items() if key not in ("triggers", "advanced")}
    assert spec == {
        "scaleTargetRef": {"name": "demo-classifleet-cpu"},
        "minReplicaCount": 2,
        "maxReplicaCount": 17,
        "pollingInterval": 7,
        "cooldownPeriod": 2000000,
        "fallback": {"failureThreshold": 9, "replicas": 1, "behavior": "currentReplicasIfHigher"},
    }
    autoscaler = found["spec"]["advanced"]["horizontalPodAutoscalerConfig"]
    assert autoscaler == {"name": "demo-classifleet-cpu", "behavior": BEHAVIOR}


def test_the_figures_of_a_horizontal_pod_autoscaler() -> None:
    scaling = {"kind": "hpa", "cpuUtilization": 55, **SCALING}
    found = one(render(LEAST, {"workers": {"cpu": {"autoscaling": scaling}}}), "HorizontalPodAutoscaler")
    assert found["metadata"]["name"] == "demo-classifleet-cpu-hpa", "not that of KEDA's"
    assert found["spec"] == {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "demo-classifleet-cpu"},
        "minReplicas": 2,
        "maxReplicas": 17,
        "behavior": BEHAVIOR,
        "metrics": [
            {
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 55}},
            }
        ],
    }


def test_budgets_for_disruption(fleet: list[Object]) -> None:
    budgets = {each["metadata"]["name"]: each["spec"] for each in of_kind(fleet, "PodDisruptionBudget")}
    assert budgets.pop("demo-classifleet-exporter")["maxUnavailable"] == 1
    assert set(budgets) == {f"demo-classifleet-{name}" for name in WORKERS}
    for each in budgets.values():
        assert (each["maxUnavailable"], each["unhealthyPodEvictionPolicy"]) == ("20%", "AlwaysAllow")
    off = render(LEAST, {"workerDefaults": {"podDisruptionBudget": {"enabled": False}}})
    assert not of_kind(off, "PodDisruptionBudget")


def test_who_reads_the_metrics(fleet: list[Object]) -> None:
    """KEDA's operator, too, where it reads the exporter."""
    given = EVERYTHING["networkPolicy"]["metricsFrom"]
    keda = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "keda-operator"}}}
    other_signal = render(GIVEN, SIGNALS["prometheus"])
    unscaled = render(LEAST, {"networkPolicy": {"metricsFrom": given}})
    for objects, name, peers in (
        (fleet, "-worker", given),
        (fleet, "-exporter", [*given, keda]),
        (other_signal, "-exporter", given),
        (unscaled, "-exporter", given),
    ):
        ingress = one(objects, "NetworkPolicy", name)["spec"]["ingress"]
        assert ingress == [{"ports": [{"port": "http", "protocol": "TCP"}], "from": peers}]
    open_to_all = one(render(LEAST, {"workers": CLASSES}), "NetworkPolicy", "-exporter")["spec"]["ingress"]
    assert open_to_all == [{"ports": [{"port": "http", "protocol": "TCP"}]}]


def test_what_prometheus_scrapes() -> None:
    monitor = {"enabled": True, "interval": "7s", "scrapeTimeout": "3s", "labels": {"release": "prometheus"}}
    found = one(render(LEAST, {"monitoring": {"podMonitor": monitor}}), "PodMonitor")
    assert found["metadata"]["labels"]["release"] == "prometheus"
    label = "__meta_kubernetes_pod_label_{}".format
    assert found["spec"] == {
        "selector": {
            "matchLabels": {"app.kubernetes.io/name": "classifleet", "app.kubernetes.io/instance": "demo"},
            "matchExpressions": [
                {"key": "app.kubernetes.io/component", "operator": "In", "values": ["worker", "exporter"]}
            ],
        },
        "podMetricsEndpoints": [
            {
                "port": "http",
                "path": "/metrics",
                "interval": "7s",
                "scrapeTimeout": "3s",
                "relabelings": [
                    {"sourceLabels": [label("app_kubernetes_io_component")], "targetLabel": "component"},
                    {"sourceLabels": [label("classifleet_class")], "targetLabel": "class"},
                ],
            }
        ],
    }
