"""What every pod of the chart keeps to, whatever the values are."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from hashlib import sha256
from typing import Any

import pytest

from tests.helm.support import (
    EXAMPLES,
    KEDA,
    LEAST,
    Object,
    chart,
    containers,
    example,
    merged,
    of_kind,
    one,
    pod_specs,
    render,
    settings_of,
)
from tests.helm.test_render import BROKERS, CLASSES, EVERYTHING, SIGNALS

Values = dict[str, Any]
WORKERS = {"workers": CLASSES}
FLEETS = {
    **{name: example(name) for name in EXAMPLES},
    "everything": merged(LEAST, WORKERS, EVERYTHING),
    "bundled": merged(LEAST, WORKERS, BROKERS["bundled"]),
    "sqs": merged(LEAST, WORKERS, BROKERS["sqs"]),
}


@pytest.fixture(scope="module", params=FLEETS)
def fleet(request: pytest.FixtureRequest) -> list[Object]:
    return render(FLEETS[request.param])


def test_pods_are_restricted(fleet: list[Object]) -> None:
    """What the Pod Security Standard `restricted` asks for, and more."""
    assert [*pod_specs(fleet)]
    for name, spec in pod_specs(fleet):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] >= 1000, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & set(spec), name
    for name, container in containers(fleet):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["readOnlyRootFilesystem"] is True, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name


def test_every_container_has_requests_limits_and_probes(fleet: list[Object]) -> None:
    for name, container in containers(fleet):
        resources = container["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"]), name
        assert {"cpu", "memory"} <= set(resources["limits"]), name
        probes = {"startupProbe", "livenessProbe", "readinessProbe"}
        assert not probes & set(container) if name.endswith("/models") else probes <= set(container), name


def test_what_is_written_to_is_a_volume(fleet: list[Object]) -> None:
    for name, spec in pod_specs(fleet):
        volumes = {each["name"] for each in spec["volumes"]}
        assert len(volumes) == len(spec["volumes"])
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
            assert set(mounts.values()) <= volumes, name
            assert ("/data" if container["name"] == "redis" else "/tmp") in mounts, name
            if container["name"] in ("worker", "models"):
                assert mounts["/models"] == "models"


def test_secrets_are_references(fleet: list[Object]) -> None:
    secret = re.compile(r"URL$|KEY|SECRET|PASSWORD|TOKEN")
    for name, container in containers(fleet):
        for variable in container.get("env", ()):
            if secret.search(variable["name"]):
                assert set(variable["valueFrom"]) == {"secretKeyRef"}, f"{name} {variable['name']}"
    for each in of_kind(fleet, "ConfigMap"):
        assert not {f"CLASSIFLEET_{name}_URL" for name in ("BROKER", "REDIS", "CONTENT_CACHE")} & set(each["data"])


def test_the_cache_by_content_has_its_url_from_a_secret() -> None:
    objects = dict(containers(render(LEAST, {"contentCache": {"existingSecret": "cache"}})))
    name = "CLASSIFLEET_CONTENT_CACHE_URL"
    found = {place: [each for each in it.get("env", ()) if each["name"] == name] for place, it in objects.items()}
    reference = {"secretKeyRef": {"name": "cache", "key": "content-cache-url"}}
    assert found.pop("demo-classifleet-cpu/worker") == [{"name": name, "valueFrom": reference}]
    assert not any(found.values())


@pytest.mark.parametrize(("volume", "apart"), [("emptyDir", False), ("claim", True), ("hostPath", True)])
def test_compiled_code_is_not_shared_where_models_are_pinned(volume: str, apart: bool) -> None:
    """Who can write to the tuning cache runs code in every worker that reads it; what fetches must write."""
    pinned = {"source": "s3://models", "digests": {"a@1": "0" * 64}}
    for models in (pinned, {"source": "s3://models"}):
        values = {"models": {**models, "volume": {"type": volume}}, "workers": {"cpu": {"models": ["a@1"]}}}
        objects = render(LEAST, values)
        found = settings_of(objects, "-cpu").get("CLASSIFLEET_TUNING_CACHE")
        assert found == ("/tmp/tuning" if apart and models is pinned else None)
        mounts = {
            name.rpartition("/")[2]: mount.get("readOnly", False)
            for name, each in containers(objects)
            for mount in each["volumeMounts"]
            if mount["name"] == "models"
        }
        assert mounts == {"models": False, "worker": apart and models is pinned}


def test_a_signal_reaches_the_worker_and_it_has_the_time_to_drain(fleet: list[Object]) -> None:
    for name, spec in pod_specs(fleet):
        for container in spec["containers"]:
            assert "command" not in container, f"{name}: the image's entry point passes signals on"
            assert "lifecycle" not in container, f"{name}: a preStop hook would only delay the drain"
        if spec["containers"][0]["name"] == "worker":
            class_ = next(each for each in of_kind(fleet, "ConfigMap") if each["metadata"]["name"] == name)
            drain = float(class_["data"]["CLASSIFLEET_DRAIN_SECONDS"])
            assert spec["terminationGracePeriodSeconds"] >= drain + 30


def test_replicas_are_there_exactly_where_nothing_scales(fleet: list[Object]) -> None:
    scaled = {
        each["spec"]["scaleTargetRef"]["name"]
        for kind in ("ScaledObject", "HorizontalPodAutoscaler")
        for each in of_kind(fleet, kind)
    }
    deployments = of_kind(fleet, "Deployment")
    assert scaled <= {each["metadata"]["name"] for each in deployments}
    for each in deployments:
        assert ("replicas" in each["spec"]) == (each["metadata"]["name"] not in scaled)


def test_every_selector_finds_its_pods_and_no_others(fleet: list[Object]) -> None:
    pods = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in of_kind(fleet, "Deployment")
    }

    def found(labels: dict[str, str]) -> set[str]:
        return {name for name, has in pods.items() if labels.items() <= has.items()}

    for each in of_kind(fleet, "Deployment"):
        assert found(each["spec"]["selector"]["matchLabels"]) == {each["metadata"]["name"]}
    for each in of_kind(fleet, "PodDisruptionBudget"):
        assert found(each["spec"]["selector"]["matchLabels"]) == {each["metadata"]["name"]}
    for each in of_kind(fleet, "Service"):
        assert found(each["spec"]["selector"]) == {each["metadata"]["name"]}
    policies = [found(each["spec"]["podSelector"]["matchLabels"]) for each in of_kind(fleet, "NetworkPolicy")]
    assert sorted(name for names in policies for name in names) == sorted(pods), "one for each pod"


def test_selectors_and_pod_labels_survive_an_upgrade() -> None:
    """Selectors cannot be changed; pod labels with a version would roll every pod with every chart."""
    for name, values in FLEETS.items():
        before = render(values)
        later = {"image": {"tag": "v9"}, "commonLabels": {"team": "other"}, "settings": {"MAX_BATCH": 4}}
        for old, new in zip(of_kind(before, "Deployment"), of_kind(render(values, later), "Deployment"), strict=True):
            assert old["spec"]["selector"] == new["spec"]["selector"], name
        for each in of_kind(before, "Deployment"):
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(labels)
            assert not any(re.search(r"\d+\.\d+", value) for value in labels.values())


def test_a_change_of_settings_rolls_the_pods_that_it_concerns() -> None:
    def checksums(*values: Values) -> dict[str, str]:
        deployments = of_kind(render(LEAST, {"workers": {"other": {}}}, *values), "Deployment")
        return {
            each["metadata"]["name"].rpartition("-")[2]: each["spec"]["template"]["metadata"]["annotations"][
                "checksum/settings"
            ]
            for each in deployments
        }

    before = checksums()
    assert checksums({"image": {"pullPolicy": "Always"}}) == before
    of_one = checksums({"workers": {"other": {"settings": {"MAX_BATCH": 4}}}})
    assert {name for name in before if before[name] != of_one[name]} == {"other"}
    of_all = checksums({"settings": {"MAX_BATCH": 4}})
    assert {name for name in before if before[name] != of_all[name]} == set(before)


def test_a_pod_with_a_gpu_asks_for_one_and_no_other_does() -> None:
    objects = render(LEAST, {"workers": CLASSES})
    limits = {name: container["resources"]["limits"] for name, container in containers(objects)}
    gpus = {name: {key for key in limit if "nvidia" in key} for name, limit in limits.items()}
    assert {name: found for name, found in gpus.items() if found} == {
        "demo-classifleet-keda/worker": {"nvidia.com/mig-1g.10gb"}
    }


def test_the_trial_redis_keeps_what_it_accepts() -> None:
    objects = render(LEAST, BROKERS["bundled"])
    secret = {key: b64decode(value).decode() for key, value in one(objects, "Secret")["data"].items()}
    lines = secret["redis.conf"].splitlines()
    assert {"appendonly yes", "maxmemory 512mb", "maxmemory-policy noeviction"} <= set(lines)
    assert f"requirepass {secret['password']}" in lines
    assert len(secret["password"]) == 32
    assert secret["broker-url"] == f"redis://:{secret['password']}@demo-classifleet-redis.shop.svc:6379/0"
    container = one(objects, "Deployment", "-redis")["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["memory"] == "768Mi", "half as much again, for the fork that saves"
    worker = dict(containers(objects))["demo-classifleet-cpu/worker"]
    assert worker["env"][0]["valueFrom"]["secretKeyRef"] == {"name": "demo-classifleet-redis", "key": "broker-url"}


def test_a_trial_redis_has_the_password_that_it_was_given() -> None:
    """One made by chance would be another with each rendering that does not see the cluster."""
    [first, second] = [
        one(render(LEAST, BROKERS["bundled"], {"redis": {"password": "s3cret"}}), "Secret", "-redis")["data"]
        for _ in range(2)
    ]
    assert first == second
    assert b64decode(first["broker-url"]) == b"redis://:s3cret@demo-classifleet-redis.shop.svc:6379/0"
    assert b"requirepass s3cret\n" in b64decode(first["redis.conf"])


def test_no_folder_keeps_a_node_that_the_autoscaler_can_spare(fleet: list[Object]) -> None:
    """But for the data of a trial Redis."""
    for deployment in of_kind(fleet, "Deployment"):
        template = deployment["spec"]["template"]
        local = {volume["name"] for volume in template["spec"]["volumes"] if "emptyDir" in volume}
        annotations = template["metadata"].get("annotations", {})
        named = annotations.get("cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes", "")
        assert local - {"data"} <= {*named.split(",")}, deployment["metadata"]["name"]


def test_egress_is_public_or_named() -> None:
    objects = render(LEAST, EVERYTHING)
    policy = one(objects, "NetworkPolicy", "-worker")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    dns, public, named = policy["egress"]
    assert {(each["port"], each["protocol"]) for each in dns["ports"]} == {
        *((53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP"))
    }, "OpenShift's DNS listens at 5353"
    v4, v6 = (each["ipBlock"] for each in public["to"])
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(v4["except"])
    assert v6["cidr"] == "2000::/3"
    assert named == {"ports": [{"port": 6379}]}


def test_alerts_and_dashboards_are_what_lies_in_files() -> None:
    where = "https://docs.example.com/runbooks"
    enabled = {"monitoring": {"rules": {"enabled": True, "runbooks": where}, "dashboards": {"enabled": True}}}
    packed = {each["name"] for each in chart().files}
    rules, boards = (
        {name for name in packed if re.fullmatch(pattern, name)}
        for pattern in (r"files/alerts/[^/]+\.yaml", r"files/dashboards/[^/]+\.json")
    )
    objects = render(LEAST, enabled)
    assert len(of_kind(objects, "PrometheusRule")) == bool(rules)
    for rule in (
        rule
        for each in of_kind(objects, "PrometheusRule")
        for group in each["spec"]["groups"]
        for rule in group["rules"]
    ):
        assert 'namespace="shop"' in rule["expr"], "of this release alone"
        assert "namespace=~" not in rule["expr"]
        assert rule["annotations"]["runbook_url"].startswith(f"{where}#classifleet")
    shown = [each for each in of_kind(objects, "ConfigMap") if "grafana_dashboard" in each["metadata"]["labels"]]
    keys = [key for each in shown for key in each["data"]]
    assert {f"files/dashboards/{key.removeprefix('demo-classifleet-')}" for key in keys} == boards
    off = render(LEAST)
    assert not of_kind(off, "PrometheusRule")
    assert not [each for each in of_kind(off, "ConfigMap") if "-dashboard-" in each["metadata"]["name"]]


def test_alerts_and_dashboards_are_about_the_pods_and_autoscalers_of_the_release() -> None:
    """Another Celery in the namespace may have a container `worker`, too; and a fleet may have any name."""
    on = {"monitoring": {"rules": {"enabled": True}, "dashboards": {"enabled": True}}, "fullnameOverride": "vision"}
    objects = render(LEAST, on)
    found = {
        kind: set(re.findall(r'(pod|horizontalpodautoscaler)=~\\*"(.*?)\\*"', json.dumps(one(objects, kind, name))))
        for kind, name in (("PrometheusRule", "vision"), ("ConfigMap", "-dashboard-classifleet"))
    }
    scaled = ("horizontalpodautoscaler", "vision-.*")
    assert found == {"PrometheusRule": {scaled, ("pod", "vision-.*")}, "ConfigMap": {scaled}}


@pytest.mark.parametrize(
    ("name", "title"),
    [("classifleet", "Classifleet"), ("vision", "Classifleet (vision)"), ("v" * 40, f"Classifleet ({'v' * 40})")],
)
def test_grafana_keeps_the_dashboards_of_all_releases(name: str, title: str) -> None:
    """It takes those with one file name, or one uid (of at most 40 characters), for one."""
    objects = render(LEAST, {"monitoring": {"dashboards": {"enabled": True}}, "fullnameOverride": name})
    [(key, text)] = one(objects, "ConfigMap", "-dashboard-classifleet")["data"].items()
    board = json.loads(text)
    assert (key, board["uid"], board["title"]) == (f"{name}-classifleet.json", name, title)


def test_the_trial_redis_starts_again_with_its_settings_alone() -> None:
    def checksum(**redis: Any) -> str:
        pod = one(render(LEAST, BROKERS["bundled"], {"redis": redis}), "Deployment", "-redis")["spec"]["template"]
        found: str = pod["metadata"]["annotations"]["checksum/settings"]
        return found

    assert checksum(maxMemory="1Gi") != checksum() == checksum(password="s3cret")
    conf = b64decode(one(render(LEAST, BROKERS["bundled"]), "Secret", "-redis")["data"]["redis.conf"]).decode()
    said = "".join(line for line in conf.splitlines(keepends=True) if not line.startswith("requirepass "))
    assert checksum() == sha256(said.encode()).hexdigest()


def test_without_the_exporter_nothing_points_at_it() -> None:
    objects = render(
        LEAST, {"exporter": {"enabled": False}}, SIGNALS["redis"], {"workers": {"cpu": {"autoscaling": dict(KEDA)}}}
    )
    assert not [each for each in objects if each["metadata"]["name"].endswith("-exporter")]
    assert "-exporter" not in str(objects)
