"""`classifleet doctor`: every check, when all is well and when it is not, with what it says to do."""

import pytest

from classifleet.config import Keys, Settings
from classifleet.config import checks as shared_checks
from classifleet.config.checks import State
from classifleet.ledger import Ledger, SyncRunner, WorkerInfo, connect
from classifleet.producer import Fleet
from classifleet.producer.cli import _checks, _queue
from classifleet.producer.cli._checks import (
    check_broker,
    check_ledger,
    check_queues,
    check_store,
    check_versions,
    check_workers,
)
from classifleet.producer.cli._doctor import run_check
from classifleet.worker.checks import check_device, check_models, check_worker_versions
from tests.support import RedisServer
from tests.support.dead import FailingWorker


def find(check, **settings):
    return run_check(check, Settings.load(**settings))


def failure(check, **settings):
    """The one finding of a check that fails."""
    [found] = [finding for finding in find(check, **settings) if finding.state is State.FAILED]
    assert found.remedy, "it says what to do"
    return found


def test_all_is_well(cli, redis_url, zoo, tmp_path, settings, monkeypatch):
    enlist(settings(namespace="default"), WorkerInfo("w1", ("default",), ("imagenet@1",), "1.0"))
    monkeypatch.setattr(_checks, "advice", lambda _: [])  # the tests' Redis has no maxmemory
    monkeypatch.setenv("CLASSIFLEET_MODEL_REPOSITORY", str(zoo))
    monkeypatch.setenv("CLASSIFLEET_SINK_ALLOW", f"file://{tmp_path}/sink")
    ended = cli("doctor", "--json", "--broker-url", redis_url)
    assert ended.code == 0, ended
    [findings] = ended.records
    assert {finding["state"] for finding in findings} == {"ok"}
    subjects = {finding["subject"] for finding in findings}
    assert subjects == {
        "versions",
        "broker",
        "ledger",
        "workers",
        "queues",
        "object store",
        "worker",
        "models",
        "device",
    }
    assert list((tmp_path / "sink").iterdir()) == []  # its probe is gone


def test_a_check_that_fails_is_exit_code_1_and_says_what_to_do(cli, zoo, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_MODEL_REPOSITORY", str(zoo))
    monkeypatch.setenv("CLASSIFLEET_CONNECT_TIMEOUT_SECONDS", "0.5")
    ended = cli("doctor", "--broker-url", "redis://:hunter2@127.0.0.1:1/0")
    assert ended.code == 1
    text = " ".join(ended.out.split())
    assert "FAILED broker" in text
    assert "FAILED ledger" in text
    assert "CLASSIFLEET_BROKER_URL" in text
    assert "ok models" in text  # one failure hides no other check
    assert "hunter2" not in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


def test_without_a_fleet_there_is_a_note(cli, zoo, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_MODEL_REPOSITORY", str(zoo))
    ended = cli("doctor")
    assert ended.code == 0
    assert "note" in ended.out
    assert "set CLASSIFLEET_BROKER_URL to use a fleet" in " ".join(ended.out.split())


def test_a_setting_that_is_wrong_is_one_line(cli, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_MAX_BATCH", "many")
    assert "max_batch" in cli("doctor").error


# Each check, failing


@pytest.mark.parametrize(("check", "library"), [(check_versions, "kombu"), (check_worker_versions, "torch")])
def test_versions(monkeypatch, check, library):
    real = shared_checks.version
    monkeypatch.setattr(shared_checks, "version", lambda name: "1.0" if name == library else real(name))
    found = failure(check)
    assert f"{library} is 1.0, classifleet needs " in found.what
    assert found.remedy.startswith(f"pip install '{library}")


def test_versions_of_what_is_not_installed(monkeypatch):
    def absent(name):
        raise shared_checks.PackageNotFoundError(name)

    monkeypatch.setattr(shared_checks, "version", absent)
    findings = find(check_worker_versions)
    assert all(finding.state is State.FAILED for finding in findings)
    assert "torch is not installed" in {finding.what for finding in findings}


def test_versions_that_are_right():
    [found] = find(check_versions)
    assert found.state is State.OK
    assert "Python 3." in found.what
    assert "kombu 5.7" in found.what


def test_broker():
    found = failure(check_broker, broker_url="redis://127.0.0.1:1/0", connect_timeout_seconds=0.5)
    assert "redis://127.0.0.1:1/0" in found.what
    assert "CLASSIFLEET_BROKER_URL" in found.remedy


def test_broker_of_a_kind_that_nobody_knows():
    assert failure(check_broker, broker_url="carrier-pigeon://loft", connect_timeout_seconds=0.5)


def test_ledger_away(redis_url):
    found = failure(check_ledger, broker_url=redis_url, redis_url="redis://127.0.0.1:1/0", connect_timeout_seconds=0.5)
    assert "does not answer" in found.what
    assert "CLASSIFLEET_REDIS_URL" in found.remedy


def test_ledger_unfit(tmp_path):
    with RedisServer.start(tmp_path, "--maxmemory-policy", "allkeys-lru") as server:
        found = failure(check_ledger, broker_url=f"{server.url}/0")
    assert "deletes keys when full" in found.what
    assert found.remedy == "set maxmemory-policy noeviction"


def test_ledger_without_a_limit(tmp_path):
    with RedisServer.start(tmp_path) as server:
        url = f"{server.url}/0"
        warning, fit = find(check_ledger, broker_url=url)
        assert (warning.state, fit.state) == (State.WARNING, State.OK)
        assert "no maxmemory" in warning.what
        assert warning.remedy.startswith("set maxmemory")
        with server.client() as client:
            client.config_set("maxmemory", "100mb")
        assert [found.state for found in find(check_ledger, broker_url=url)] == [State.OK]


def enlist(settings, *processes):
    runner = SyncRunner(connect(settings), settings.ledger_url())
    for info in processes:
        runner.run(Ledger(Keys(settings.namespace)).enlist(info))
    runner.close()


def test_workers(redis_url, settings):
    given = settings(namespace="default")
    [nobody] = find(check_workers, broker_url=redis_url)
    assert (nobody.state, nobody.what) == (State.WARNING, "no worker is running")
    assert nobody.remedy == "start `classifleet worker` for this broker"
    enlist(given, WorkerInfo("e1", (), (), "2.0"))
    [nobody] = find(check_workers, broker_url=redis_url)
    assert (nobody.state, nobody.what) == (State.WARNING, "no worker is running (1 exporters)")
    enlist(given, WorkerInfo("w1", ("default",), (), "1.0"), WorkerInfo("w2", ("default", "gpu"), (), "2.0"))
    [found] = find(check_workers, broker_url=redis_url)
    assert found.state is State.OK
    assert found.what == "workers: 2 (2 in pool default, 1 in pool gpu); exporters: 1; classifleet 1.0, 2.0"
    assert find(check_workers) == []
    assert find(check_workers, broker_url="redis://127.0.0.1:1/0", connect_timeout_seconds=0.5) == []


def test_ledger_nowhere():
    found = failure(check_ledger, broker_url="amqp://127.0.0.1")
    assert "no Redis for the ledger: set CLASSIFLEET_REDIS_URL" in found.what


def test_queues_that_are_idle(redis_url):
    [found] = find(check_queues, broker_url=redis_url, queues=["default", "gpu"])
    assert found.state is State.OK
    for name in ("classify.default.bulk", "classify.default.interactive", "classify.gpu.bulk"):
        assert name in found.what
    assert "whether a worker serves them shows when there is work" in found.what


def test_queues_of_which_nobody_takes_one(redis_url, settings, monkeypatch):
    monkeypatch.setattr(_queue, "WAITED_SECONDS", 0.0)
    with Fleet(redis_url) as fleet, FailingWorker(settings(namespace="default", broker_url=redis_url)) as worker:
        fleet.submit("data:,x", models="imagenet")
        fleet.submit_many(["data:,x"], models="imagenet", job_id="mine")
        worker.begin("mine", "00000000", "classify.default.bulk")
        unserved, served = find(check_queues, broker_url=redis_url)
    assert unserved.state is State.WARNING
    assert unserved.what.startswith("classify.default.interactive: 1 images wait for ")
    assert unserved.remedy == "start `classifleet worker` for this broker, with default in CLASSIFLEET_QUEUES"
    assert (served.state, served.what) == (State.OK, "workers serve classify.default.bulk")


def test_queues_without_a_ledger():
    assert find(check_queues) == []
    assert find(check_queues, broker_url="redis://127.0.0.1:1/0", connect_timeout_seconds=0.5) == []
    assert find(check_queues, broker_url="amqp://127.0.0.1") == []


def test_object_store(s3, tmp_path):
    assert [
        f.state for f in find(check_store, sink_allow=[f"{s3.url}/x"], source_allow=[s3.url], **s3.settings_kwargs)
    ] == [
        State.OK,
        State.OK,
    ]
    (tmp_path / "file").write_text("")
    for allowed in (
        {"sink_allow": [f"file://{tmp_path}/file/sink"]},
        {"sink_allow": ["s3://no-such-bucket/x"], **s3.settings_kwargs},
        {"source_allow": ["s3://no-such-bucket/x"], **s3.settings_kwargs},
        {"sink_allow": ["s3://b"], "s3_endpoint_url": "http://127.0.0.1:1", "connect_timeout_seconds": 0.5},
        {"sink_allow": ["gopher://x"]},
    ):
        found = failure(check_store, **allowed)
        assert "credentials" in found.remedy


def test_object_store_that_nobody_uses():
    [found] = find(check_store)
    assert found.state is State.OK
    assert "CLASSIFLEET_SINK_ALLOW" in found.what


def test_models(zoo, tmp_path):
    assert "classifleet models build" in failure(check_models, model_repository=str(tmp_path)).remedy
    found = failure(check_models, model_repository=str(zoo), models=["imagenet", "cats"])
    assert "has no model cats" in found.what
    assert "CLASSIFLEET_MODELS" in found.remedy


def test_a_damaged_model(zoo, tmp_path):
    damaged = tmp_path / "imagenet" / "1"
    damaged.mkdir(parents=True)
    (damaged / "model.json").write_bytes((zoo / "imagenet" / "1" / "model.json").read_bytes())
    (damaged / "model.pt").write_bytes(b"not a model")
    assert "damaged" in failure(check_models, model_repository=str(tmp_path)).what


def test_device(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = failure(check_device, device="cuda")
    assert "torch sees no GPU" in found.what
    assert "CLASSIFLEET_DEVICE=auto" in found.remedy
