from __future__ import annotations

import json
from pathlib import Path

import pytest

from classifleet.config import ErrorCode, ImageError, Settings, StorageUnavailable
from classifleet.ledger import Part
from classifleet.worker import sink as sink_module
from classifleet.worker.sink import Sinks, part_name


def sinks(*allowed: str) -> Sinks:
    return Sinks(Settings.load(sink_allow=list(allowed)))


@pytest.mark.parametrize(
    ("sink", "allowed"),
    [
        ("s3://bucket/a", "s3://bucket/a"),
        ("s3://bucket/a/b", "s3://bucket/a"),
        ("s3://bucket/a/b", "s3://bucket/a/"),
        ("s3://bucket", "s3://bucket"),
        ("file:///data/out/x", "file:///data/out"),
    ],
)
def test_allowed(sink: str, allowed: str) -> None:
    sinks("s3://other", allowed).require_allowed(sink)


@pytest.mark.parametrize(
    ("sink", "allowed"),
    [
        ("s3://bucket/a", ""),
        ("s3://bucket/ab", "s3://bucket/a"),
        ("s3://bucket2", "s3://bucket"),
        ("s3://bucket/a/../b", "s3://bucket/a"),
        ("file:///data/out/../secret", "file:///data/out"),
        ("file:///data/outside", "file:///data/out"),
        ("file:///data", "s3://bucket"),
    ],
)
def test_refused(sink: str, allowed: str) -> None:
    with pytest.raises(ImageError, match="CLASSIFLEET_SINK_ALLOW") as caught:
        sinks(*filter(None, [allowed])).require_allowed(sink)
    assert caught.value.code is ErrorCode.FORBIDDEN_SOURCE


def test_a_link_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "allowed").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ImageError):
        sinks(f"file://{tmp_path}/allowed").require_allowed(f"file://{tmp_path}/allowed/link")


def test_parts_and_manifest(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    writer = sinks(url)
    name = part_name("00000003", 2, "0123456789abcdef")
    assert name == "parts/00000003-2-01234567.ndjson"
    writer.write_part(url, "job", name, [b'{"id":"a"}', b'{"id":"b"}'])
    assert (tmp_path / "job" / name).read_bytes() == b'{"id":"a"}\n{"id":"b"}\n'
    writer.write_manifest(url, "job", {"state": "done"}, [Part("00000003", 2, 1, 0, 1, name)])
    manifest = json.loads((tmp_path / "job" / "manifest.json").read_text())
    assert manifest == {
        "v": 1,
        "job": "job",
        "state": "done",
        "parts": [{"name": name, "images": 2, "ok": 1, "partial": 0, "failed": 1}],
    }
    writer.delete_part(url, "job", name)
    writer.delete_part(url, "job", name)  # deleting twice is no error
    assert not (tmp_path / "job" / name).exists()


def test_a_store_that_is_away_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Flaky:
        def put(self, name: str, data: bytes) -> None:
            calls.append(name)
            if len(calls) < 3:
                raise StorageUnavailable("away")

    monkeypatch.setattr(sink_module, "open_store", lambda *_: Flaky())
    sinks("s3://b").write_part("s3://b", "job", "parts/0-1.ndjson", [b"{}"])
    assert calls == ["job/parts/0-1.ndjson"] * 3
