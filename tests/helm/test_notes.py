"""What `helm install` says: how to begin, and what is not yet fit for production."""

from __future__ import annotations

import re
from typing import Any

import pytest

from classifleet.config import Settings
from tests.helm.support import CHART, KEDA, LEAST, example, notes

SAFE = {  # what has no note
    "models": {"digests": {"a@1": "0" * 64}},
    "networkPolicy": {"egress": {"enabled": True, "to": [{}]}},
    "monitoring": {"podMonitor": {"enabled": True}},
    "workers": {"cpu": {"models": ["a@1"]}},
}
LEDGER = {"ledger": {"existingSecret": "ledger"}}


def keda(**autoscaling: Any) -> dict[str, Any]:
    return {"workers": {"cpu": {"autoscaling": {**KEDA, **autoscaling}}}}


def test_notes_say_what_is_there() -> None:
    trial, production = notes(example("trial-gpu")), notes(example("eks-sqs-s3"))
    assert "TRIAL: Redis is one pod" in trial
    assert "NOTE: models.digests is empty: whoever may write to s3://models decides" in notes(LEAST)
    for text in (trial, production):
        assert "rollout status deployment/demo-classifleet-gpu" in text
        assert "service/demo-classifleet-exporter 9464" in text
        assert "exec deployment/demo-classifleet-exporter -- classifleet classify" in text
    assert "exec deployment/demo-classifleet-cpu -- " in notes(LEAST, {"exporter": {"enabled": False}})


@pytest.mark.parametrize(
    ("values", "package", "environment"),
    [
        ({}, "classifleet", {"BROKER_URL": "Secret urls, key broker-url"}),
        (
            {"broker": {"existingSecret": ""}, "redis": {"enabled": True}},
            "classifleet",
            {"BROKER_URL": "Secret demo-classifleet-redis, key broker-url"},
        ),
        (
            {"broker": {"type": "amqp"}, **LEDGER, "settings": {"NAMESPACE": "a", "POOLS": "m=slow"}},
            "classifleet",
            {
                "BROKER_URL": "Secret urls, key broker-url",
                "REDIS_URL": "Secret ledger, key redis-url",
                "NAMESPACE": "a",
                "POOLS": "m=slow",
            },
        ),
        (
            {"broker": {"type": "sqs"}, **LEDGER},
            "'classifleet[sqs]'",
            {"BROKER_URL": "Secret urls, key broker-url", "REDIS_URL": "Secret ledger, key redis-url"},
        ),
    ],
)
def test_a_producer_is_told_all_that_it_needs(
    values: dict[str, Any], package: str, environment: dict[str, str]
) -> None:
    text = notes(LEAST, values)
    assert f"`pip install {package}`" in text
    assert dict(re.findall(r"^ +CLASSIFLEET_(\w+): (.+)$", text, re.MULTILINE)) == environment


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, ()),
        ({"networkPolicy": {"egress": {"enabled": False}}}, ["the pods may reach every address."]),
        ({"monitoring": {"podMonitor": {"enabled": False}}}, ["scrapes /metrics at port 9464, no alert can fire."]),
        (
            {"monitoring": {"podMonitor": {"enabled": False}, "rules": {"enabled": True, "runbooks": "https://a"}}},
            ["9464, ClassifleetExporterAway fires, and no alert on the fleet's own metrics can."],
        ),
        (
            {"monitoring": {"rules": {"enabled": True}}},
            ["rules.runbooks is docs/runbooks.md, a link that leads nowhere"],
        ),
        (keda(), ()),
        (keda(maxReplicas=100), ["cpu: one job shows at most 320000 images, i.e. 54 pods by backlog; raise"]),
        (keda(drainGoalSeconds=20.48), ()),
        (
            keda(drainGoalSeconds=20.47),
            ["cpu: the target is 2047 images a replica, less than twice the 1024 that one holds, so that"],
        ),
        (
            {"workers": {name: {"models": ["a@1"], "autoscaling": dict(KEDA)} for name in ("cpu", "other")}},
            [f"cpu and other both count classify.default.{lane}, and each" for lane in ("interactive", "bulk")],
        ),
    ],
)
def test_what_is_not_yet_fit_has_a_note(values: dict[str, Any], said: list[str]) -> None:
    found = re.findall(r"^(?:NOTE|TRIAL): .+", notes(LEAST, SAFE, values), re.MULTILINE)
    assert len(found) == len(said), found
    assert all(any(each in note for note in found) for each in said), found


def test_the_examples_for_production_have_notes_about_one_job_alone() -> None:
    assert re.findall(r"TRIAL|NOTE.*", notes(example("eks-sqs-s3"))) == [
        "NOTE: gpu: one job shows at most 320000 images, i.e. 3 pods by backlog; raise SUBMISSION_WINDOW of the "
        "producers, or lower drainGoalSeconds."
    ]
    assert "both count" not in notes(example("scale-to-zero"))
    window = Settings.model_fields["submission_window"].default
    assert f"{{{{- $job := mul {window} " in (CHART / "templates" / "NOTES.txt").read_text()
