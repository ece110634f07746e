"""The claim store as a folder: names, deletion, age, what a fork and a failure do."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from pathlib import Path

import pytest

from classifleet.config import Payload, Settings, SettingsError, StorageError
from classifleet.config.claims import Claims
from classifleet.config.payload import make_payload

DATA = b"x" * 100_000
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "claims"


@pytest.fixture
def claims(folder: Path) -> Claims:
    return Claims(Settings.load(claim_store=f"file://{folder}/", namespace="ns"))


def payload(job: str = "j", chunk: str = "0", *refs: str) -> Payload:
    items = [{"id": str(number), "ref": ref} for number, ref in enumerate(refs or (f"claim:{SHA}",))]
    return make_payload(job=job, chunk=chunk, items=items, models=["m"])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_an_image_is_stored_read_and_deleted_with_its_folders(claims: Claims, folder: Path) -> None:
    claims.put("j", "0", {SHA: DATA})
    assert files(folder)[-1] == f"ns/j/0/{SHA}"
    assert claims.get("j", "0", SHA) == DATA
    assert claims.locate("j", "0", SHA).location == f"{folder}/ns/j/0/{SHA}"
    claims.delete(payload())
    assert files(folder) == []
    with pytest.raises(FileNotFoundError):
        claims.get("j", "0", SHA)
    claims.delete(payload())  # it is gone already


def test_many_images_and_those_that_are_kept(claims: Claims, folder: Path) -> None:
    images = {hashlib.sha256(bytes([number])).hexdigest(): bytes([number]) for number in range(40)}
    claims.put("j", "0", images)
    refs = [f"claim:{sha256}" for sha256 in images]
    claims.delete(payload("j", "0", *refs, "https://example.com/a"), keep=refs[:2])
    assert [name for name in files(folder) if "0/" in name] == sorted(f"ns/j/0/{ref[6:]}" for ref in refs[:2])


def test_old_images_are_swept_and_nothing_else_is(claims: Claims, folder: Path) -> None:
    for job in ("old", "new"):
        claims.put(job, "0", {SHA: DATA})
    (folder / "ns" / "notes.txt").write_text("not an image")
    Claims(Settings.load(claim_store=f"file://{folder}", namespace="other")).put("old", "0", {SHA: DATA})
    for path in folder.rglob("*"):
        if path.is_file() and "new" not in path.parts:
            os.utime(path, (1_000_000, 1_000_000))
    assert claims.sweep(3600) == 1
    assert [name for name in files(folder) if Path(folder, name).is_file()] == [
        f"ns/new/0/{SHA}",
        "ns/notes.txt",
        f"other/old/0/{SHA}",
    ]
    assert claims.sweep() == 0
    assert claims.sweep(-60) == 1


def test_without_a_store_there_is_nothing_to_do() -> None:
    claims = Claims(Settings.load())
    assert not claims.enabled
    assert claims.sweep() == 0
    claims.delete(payload())
    with pytest.raises(StorageError, match="claim_store"):
        claims.locate("j", "0", SHA)


def test_a_store_that_fails_is_logged_at_deletion(
    claims: Claims, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "ns" / "j" / "0" / SHA).mkdir(parents=True)  # a folder is not deleted as a file
    with caplog.at_level(logging.WARNING):
        claims.delete(payload())
    assert "images of j/0 stay in the claim store for now" in caplog.text


def test_folders_come_and_go_under_many_writers(claims: Claims, folder: Path) -> None:
    def work(job: str) -> None:
        try:
            for _ in range(100):
                claims.put(job, "0", {SHA: b"x"})
                claims.delete(payload(job))
        except Exception as error:  # noqa: BLE001 - for the assertion
            failed.append(error)

    failed: list[Exception] = []
    threads = [threading.Thread(target=work, args=(f"j{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert files(folder) == []


@pytest.mark.parametrize("url", ["https://host/x", "s3://", "file://x"])
def test_a_store_that_is_none(url: str) -> None:
    with pytest.raises(SettingsError, match="claim_store"):
        Settings.load(claim_store=url)
