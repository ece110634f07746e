"""Settings: the four sources and their order, what is refused and how it is said, URLs without secrets."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from classifleet.config import Settings, SettingsError, mask_url, queue_name
from classifleet.config.urls import for_kombu, for_redis_py, is_redis


@pytest.fixture(autouse=True)
def _empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where no classifleet.toml lies


def put(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"CLASSIFLEET_{name}", value)


def test_defaults_need_nothing() -> None:
    settings = Settings.load()
    assert settings.broker_url is None
    assert settings.namespace == "default"
    assert settings.model_fields_set == set()


def test_every_setting_has_a_description_and_a_valid_default() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
    defaults = Settings.load().model_dump()
    assert Settings.load(**defaults).model_dump() == defaults


@pytest.mark.parametrize(
    ("argument", "variable", "file", "value", "source"),
    [
        (None, None, None, "default", "default"),
        (None, None, "file", "file", "classifleet.toml"),
        (None, "env", None, "env", "environment"),
        (None, "env", "file", "env", "environment"),
        ("arg", None, None, "arg", "argument"),
        ("arg", "env", None, "arg", "argument"),
        ("arg", None, "file", "arg", "argument"),
        ("arg", "env", "file", "arg", "argument"),
    ],
)
def test_first_source_wins_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
    argument: str | None,
    variable: str | None,
    file: str | None,
    value: str,
    source: str,
) -> None:
    if variable:
        put(monkeypatch, NAMESPACE=variable)
    if file:
        Path("classifleet.toml").write_text(f'namespace = "{file}"\n')
    settings = Settings.load(namespace=argument)
    assert settings.namespace == value
    assert settings.source("namespace") == source


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("MODELS", "imagenet, nsfw", ["imagenet", "nsfw"]),
        ("MODELS", '["imagenet", "nsfw"]', ["imagenet", "nsfw"]),
        ("MODELS", "imagenet,", ["imagenet"]),
        ("MODELS", "", []),
        ("FILE_ROOTS", '["/with,comma"]', ["/with,comma"]),
        ("POOLS", "nsfw=gpu, imagenet = cpu", {"nsfw": "gpu", "imagenet": "cpu"}),
        ("POOLS", '{"nsfw": "gpu"}', {"nsfw": "gpu"}),
        ("EPHEMERAL", "true", True),
        ("HTTP_PORT", "0", 0),
        ("HTTP_PORT", "", None),
        ("LEASE_SECONDS", "2.5", 2.5),
    ],
)
def test_variables_are_written_as_people_write_them(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    put(monkeypatch, **{name: text})
    assert getattr(Settings.load(), name.lower()) == value


def test_file_holds_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.toml"
    file.write_text('models = ["imagenet"]\nchunk_size = 16\n[pools]\nnsfw = "gpu"\n')
    put(monkeypatch, CONFIG_FILE=str(file))
    settings = Settings.load()
    assert (settings.models, settings.chunk_size, settings.pools) == (["imagenet"], 16, {"nsfw": "gpu"})
    assert settings.source("pools") == str(file)


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({"BROKER": "redis://h"}, {}, r"CLASSIFLEET_BROKER is not a setting; did you mean CLASSIFLEET_BROKER_URL\?"),
        ({"ZZZ": "1"}, {}, r"CLASSIFLEET_ZZZ is not a setting$"),
        ({"METRICS_PORT": "9000"}, {}, r"CLASSIFLEET_METRICS_PORT is not a setting"),
        ({"POOLS__NSFW": "gpu"}, {}, r"CLASSIFLEET_POOLS__NSFW is not a setting"),
        ({"CHUNK_SIZE": "many"}, {}, r"chunk_size: .*integer.*\(chunk_size from environment\)"),
        ({"CHUNK_SIZE": "0"}, {}, r"chunk_size: .*greater than or equal to 1"),
        ({"NAMESPACE": "a:b"}, {}, r"namespace: "),
        ({"NAMESPACE": "a}b"}, {}, r"namespace: "),
        ({"BROKER_URL": "localhost:6379"}, {}, r"broker_url: not a URL: expected something like redis://"),
        ({"MODELS": "[1,"}, {}, r"models: "),
        ({"MODELS": '{"a": "b"}'}, {}, r"models: .*list"),
        ({"POOLS": "nsfw"}, {}, r"pools: 'nsfw' has no value"),
        ({"DEVICE": "tpu"}, {}, r"device: "),
        ({"CONFIG_FILE": "nowhere.toml"}, {}, r"CLASSIFLEET_CONFIG_FILE names nowhere.toml, which is not a file"),
        ({}, {"chunks": 1}, r"chunks is not a setting.*\(chunks from argument\)"),
        ({"CHUNK_SIZE": "16"}, {"chunk_size": 0}, r"\(chunk_size from argument\)"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], arguments: dict[str, Any], message: str
) -> None:
    put(monkeypatch, **variables)
    with pytest.raises(SettingsError, match=message):
        Settings.load(**arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "namespac = 'x'\n",
            r"namespac is not a setting; did you mean namespace\? \(namespac from .*classifleet.toml\)",
        ),
        ("zzz = 1\n", r"zzz is not a setting \(zzz from"),
        ("namespace = \n", r"settings: classifleet.toml: .*line 1"),
        ("chunk_size = 'many'\n", r"chunk_size: .*\(chunk_size from classifleet.toml\)"),
    ],
)
def test_a_wrong_file_is_named(text: str, message: str) -> None:
    Path("classifleet.toml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        Settings.load()


def test_no_message_holds_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, BROKER_URL="redis:hunter2@host")
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(Settings.load(broker_url="redis://:hunter2@h", redis_url="redis://:hunter2@h"))


SERVICE_VARIABLES = {
    # what Kubernetes sets for the services "classifleet" and "classifleet-worker"
    "SERVICE_HOST": "10.0.0.1",
    "SERVICE_PORT": "9464",
    "PORT": "tcp://10.0.0.1:9464",
    "PORT_9464_TCP": "tcp://10.0.0.1:9464",
    "WORKER_SERVICE_HOST": "10.0.0.1",
    "WORKER_SERVICE_PORT": "9464",
    "WORKER_SERVICE_PORT_METRICS": "9464",
    "WORKER_PORT": "tcp://10.0.0.1:9464",
    "WORKER_PORT_9464_TCP": "tcp://10.0.0.1:9464",
    "WORKER_PORT_9464_TCP_PROTO": "tcp",
    "WORKER_PORT_9464_TCP_PORT": "9464",
    "WORKER_PORT_9464_TCP_ADDR": "10.0.0.1",
}


@pytest.mark.parametrize("name", SERVICE_VARIABLES)
def test_variables_of_kubernetes_services_are_ignored(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    put(monkeypatch, **{name: SERVICE_VARIABLES[name]})
    assert Settings.load().model_fields_set == set()


def test_settings_are_frozen_and_pickle() -> None:
    settings = Settings.load(namespace="a")
    with pytest.raises(ValueError, match="frozen"):
        settings.namespace = "b"  # type: ignore[misc]
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings
    assert copy.source("namespace") == "argument"


def test_models_live_in_the_data_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Settings.load().model_repository == str(tmp_path / "classifleet" / "models")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings.load().model_repository == str(tmp_path / ".local" / "share" / "classifleet" / "models")


@pytest.mark.parametrize(
    ("broker", "redis", "ledger"),
    [
        ("redis://b/1", None, "redis://b/1"),
        ("redis://b/1", "redis://l/2", "redis://l/2"),
        ("rediss://b/1", None, "rediss://b/1"),
        ("amqp://b", "redis://l", "redis://l"),
        ("redis+socket:///run/redis.sock?virtual_host=3", None, "unix:///run/redis.sock?db=3"),
        ("unix:///run/redis.sock?db=3", None, "unix:///run/redis.sock?db=3"),
        (None, "redis://l", "redis://l"),
    ],
)
def test_the_ledger_is_the_broker_when_that_is_redis(broker: str | None, redis: str | None, ledger: str) -> None:
    assert Settings.load(broker_url=broker, redis_url=redis).ledger_url() == ledger


@pytest.mark.parametrize("name", ["redis_url", "content_cache_url"])
@pytest.mark.parametrize("url", ["sentinel://:hunter2@a:26379", "amqp://b"])
def test_what_must_be_a_redis_is_one(name: str, url: str) -> None:
    with pytest.raises(SettingsError, match=r"not of a Redis: .* an address that follows the primary") as caught:
        Settings.load(**{name: url})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("broker", "message"),
    [
        (None, "set CLASSIFLEET_REDIS_URL or CLASSIFLEET_BROKER_URL"),
        ("amqp://b", r"set CLASSIFLEET_REDIS_URL \(the broker is not a Redis\)"),
    ],
)
def test_without_a_redis_there_is_no_ledger(broker: str | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings.load(broker_url=broker).ledger_url()


@pytest.mark.parametrize(
    ("models", "lane", "queue"),
    [
        (["imagenet"], "interactive", "classify.default.interactive"),
        (["imagenet", "other"], "bulk", "classify.default.bulk"),
        (["nsfw@3"], "bulk", "classify.gpu.bulk"),
    ],
)
def test_the_queue_follows_the_pool_of_the_models(models: list[str], lane: Any, queue: str) -> None:
    assert Settings.load(pools={"nsfw": "gpu"}).queue_of(models, lane) == queue


def test_one_request_has_one_pool() -> None:
    with pytest.raises(SettingsError, match="imagenet, nsfw live in different pools: default, gpu"):
        Settings.load(pools={"nsfw": "gpu"}).queue_of(["imagenet", "nsfw"], "bulk")
    assert queue_name("gpu", "bulk") == "classify.gpu.bulk"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://user:secret@host/0", "redis://user:***@host/0"),
        ("redis://:se/cr?e#t@host/0", "redis://:***@host/0"),
        ("redis://:sec@ret@host/0", "redis://:***@host/0"),
        ("amqp://user:secret@[::1]:5672//", "amqp://user:***@[::1]:5672//"),
        ("sentinel://:secret@a:26379;sentinel://:secret@b:26379/0", "sentinel://:***@b:26379/0"),
        ("unix:///run/redis.sock?db=1&password=secret", "unix:///run/redis.sock?db=1&password=***"),
        ("redis://host/0?Password=secret&x=1", "redis://host/0?Password=***&x=1"),
        ("not a url", "not a url"),
    ],
)
def test_passwords_are_masked(url: str, masked: str) -> None:
    assert mask_url(url) == masked
    assert "secret" not in mask_url(url)


def test_unix_sockets_are_spelled_for_each_library() -> None:
    ours, theirs = "unix:///run/r.sock?db=2", "redis+socket:///run/r.sock?virtual_host=2"
    assert (for_redis_py(theirs), for_kombu(ours)) == (ours, theirs)
    assert for_redis_py("redis://h/0") == for_kombu("redis://h/0") == "redis://h/0"
    assert is_redis(ours)
    assert is_redis(theirs)
    assert not is_redis("amqp://h")
