"""The names of Redis keys: each is in the documented table, and two namespaces never share one."""

from __future__ import annotations

import re

import pytest

from classifleet.config import KEY_TABLE, Keys, Settings, SettingsError
from classifleet.config.brokers import woken

KEYS = Keys("prod")
NAMES = {
    "schema": KEYS.shared("schema"),
    "jobs": KEYS.shared("jobs"),
    "queues": KEYS.shared("queues"),
    "finalise": KEYS.shared("finalise"),
    "blobs": KEYS.shared("blobs"),
    "blob_bytes": KEYS.shared("blob_bytes"),
    "job:<job>": KEYS.job("j"),
    "pending:<job>": KEYS.pending("j"),
    "parts:<job>": KEYS.parts("j"),
    "log:<job>": KEYS.log("j"),
    "chunk:<job>:<chunk>": KEYS.chunk("j", "c"),
    "records:<job>:<chunk>": KEYS.records("j", "c"),
    "blob:<job>:<chunk>:<sha256>": KEYS.blob("j", "c", "0" * 64),
    "queue:<queue>:queued": KEYS.queue("q", "queued"),
    "queue:<queue>:leased": KEYS.queue("q", "leased"),
    "queue:<queue>:parked": KEYS.queue("q", "parked"),
    "queue:<queue>:ring": KEYS.queue("q", "ring"),
    "queue:<queue>:grants": KEYS.queue("q", "grants"),
    "queue:<queue>:images": KEYS.queue("q", "images"),
    "queue:<queue>:rates": KEYS.queue("q", "rates"),
    "open": KEYS.shared("open"),
    "room": KEYS.shared("room"),
    "memory": KEYS.shared("memory"),
    "dead": KEYS.shared("dead"),
    "dead:<letter>": KEYS.dead("l"),
    "broker:<queue>": f"{KEYS.broker}q",
    "broker:<queue>:woken": f"{KEYS.broker}{woken('q')}",
    "broker:reserved": f"{KEYS.broker}reserved",
    "broker:deadlines": f"{KEYS.broker}deadlines",
    "broker:garbage": f"{KEYS.broker}garbage",
    "lock:<name>": KEYS.lock("n"),
    "content:<digest>": KEYS.content("d"),
    "revoked:<grant>": KEYS.shared("revoked:g"),
    "kept:<job>:<chunk>:<sha256>": KEYS.shared("kept:j:c:" + "0" * 64),
    "workers": KEYS.shared("workers"),
    "about": KEYS.shared("about"),
}


def test_the_table_has_each_key_once() -> None:
    patterns = [row.pattern for row in KEY_TABLE]
    assert sorted(patterns) == sorted(NAMES)
    assert len(set(patterns)) == len(patterns)


@pytest.mark.parametrize("row", KEY_TABLE, ids=lambda row: row.pattern)
def test_each_name_follows_its_pattern(row: object) -> None:
    pattern = row.pattern  # type: ignore[attr-defined]
    expected = "classifleet:{prod}:" + re.sub(r"<(\w)\w*>", r"\1", pattern.replace("<sha256>", "0" * 64))
    assert NAMES[pattern] == expected


@pytest.mark.parametrize("row", KEY_TABLE, ids=lambda row: row.pattern)
def test_each_row_says_type_lifetime_writer_and_meaning(row: object) -> None:
    assert row.type in {"string", "hash", "list", "set", "zset"}  # type: ignore[attr-defined]
    for column in ("lifetime", "writer", "meaning"):
        assert getattr(row, column).strip(), column


def test_namespaces_share_no_key_and_no_channel() -> None:
    other = Keys("prod2")
    assert not other.prefix.startswith(KEYS.prefix)
    assert not KEYS.prefix.startswith(other.prefix)
    assert KEYS.reply("client") == "classifleet:{prod}:reply:client"
    assert KEYS.reply("client") != other.reply("client")


@pytest.mark.parametrize("namespace", ["", "a b", "a{b", "a}b", "a:b", "-a", "a" * 64, "é"])
def test_a_namespace_cannot_break_out_of_its_braces(namespace: str) -> None:
    with pytest.raises(SettingsError, match="namespace"):
        Settings.load(namespace=namespace)
