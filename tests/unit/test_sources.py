"""Files, blobs, data: and what the other schemes refuse without asking anyone."""

import asyncio
import base64
import os
import random
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from classifleet.config import ErrorCode, ImageError, LedgerUnavailable, Settings, SettingsError, parse_reference
from classifleet.worker.ingest import Fetcher, files, require_sources
from classifleet.worker.ingest.retry import BACKOFF_MAX_SECONDS, retry_after_seconds, retry_wait_seconds

IMAGE = b"\xff\xd8 an image"


def fetch(reference, *, read_blob=lambda *_: None, deadline_seconds=None, **settings):
    async def scenario():
        fetcher = Fetcher(Settings.load(**settings), read_blob=read_blob)
        await fetcher.start()
        try:
            return await fetcher.fetch(
                parse_reference(reference), job="job", chunk="chunk", deadline_seconds=deadline_seconds
            )
        finally:
            await fetcher.close()

    return asyncio.run(scenario())


def failure(reference, **options) -> ImageError:
    with pytest.raises(ImageError) as caught:
        fetch(reference, **options)
    return caught.value


# Files


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "a b.jpg").write_bytes(IMAGE)
    (tmp_path / "root-not").mkdir()
    (tmp_path / "root-not" / "secret").write_bytes(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    return folder


def test_a_file_below_a_root_is_read(root):
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "größe.jpg").write_bytes(IMAGE)
    (root / "link.jpg").symlink_to("deep/er/größe.jpg")
    for name in ("a%20b.jpg", "deep/../a%20b.jpg", "deep/er/gr%C3%B6%C3%9Fe.jpg", "link.jpg", "/./a%20b.jpg"):
        assert fetch(f"file://{root}/{name}", file_roots=[str(root / "deep" / "er"), str(root)]) == IMAGE


def test_a_root_may_be_a_link_itself(root, tmp_path):
    (tmp_path / "alias").symlink_to(root)
    assert fetch(f"file://{tmp_path}/alias/a%20b.jpg", file_roots=[str(tmp_path / "alias")]) == IMAGE
    assert fetch(f"file://{root}/a%20b.jpg", file_roots=[str(tmp_path / "alias")]) == IMAGE


def test_files_are_off_by_default(root):
    error = failure(f"file://{root}/a%20b.jpg")
    assert error.code is ErrorCode.FORBIDDEN_SOURCE
    assert "file_roots" in str(error)


@pytest.mark.parametrize(
    "path", ["../secret", "%2e%2e/secret", "../root-not/secret", "deep/../../secret", "../missing"]
)
def test_nothing_outside_the_roots_is_read(root, path):
    error = failure(f"file://{root}/{path}", file_roots=[str(root)])
    assert error.code is ErrorCode.FORBIDDEN_SOURCE
    assert "file_roots" in str(error)


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "/proc/self/environ", "../root-not/secret", ".."])
def test_no_link_leads_out(root, target):
    (root / "link").symlink_to(target)
    for path in ("link", "link/secret"):
        assert failure(f"file://{root}/{path}", file_roots=[str(root)]).code is ErrorCode.FORBIDDEN_SOURCE


@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "root", "loop"])
def test_only_regular_files_are_read(root, kind):
    path = root / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            folder = os.open(root, os.O_RDONLY)
            try:
                server.bind(f"/proc/self/fd/{folder}/x")  # the path itself may be too long for a socket
            finally:
                os.close(folder)
    elif kind == "loop":
        path.symlink_to("x")
    else:
        path = root
    assert failure(f"file://{path}", file_roots=[str(root)]).code is ErrorCode.FORBIDDEN_SOURCE


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "/dev/null"])
def test_no_device_is_read_even_below_a_root(path):
    assert failure(f"file://{path}", file_roots=["/"], deadline_seconds=5).code is ErrorCode.FORBIDDEN_SOURCE


@pytest.mark.parametrize("victim", ["file", "folder"])
def test_a_link_that_is_swapped_in_after_the_check_is_not_followed(root, tmp_path, monkeypatch, victim):
    (root / "folder").mkdir()
    (root / "folder" / "secret").write_bytes(IMAGE)
    checked = files._below

    def swapping(path, roots):
        result = checked(path, roots)
        if victim == "file":
            (root / "folder" / "secret").unlink()
            (root / "folder" / "secret").symlink_to(tmp_path / "secret")
        else:
            (root / "folder").rename(root / "moved")
            (root / "folder").symlink_to(tmp_path)
        return result

    monkeypatch.setattr(files, "_below", swapping)
    error = failure(f"file://{root}/folder/secret", file_roots=[str(root)])
    assert error.code in (ErrorCode.FORBIDDEN_SOURCE, ErrorCode.NOT_FOUND)


def test_a_device_that_is_swapped_in_after_the_check_is_not_read(root, monkeypatch):
    (root / "x").write_bytes(IMAGE)
    real = os.open

    def swapping(path, flags, *args, **kwargs):
        if path == "x":
            (root / "x").unlink()
            os.mkfifo(root / "x")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", swapping)
    error = failure(f"file://{root}/x", file_roots=[str(root)], deadline_seconds=5)
    assert error.code is ErrorCode.FORBIDDEN_SOURCE


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("missing.jpg", ErrorCode.NOT_FOUND),
        ("missing/a.jpg", ErrorCode.NOT_FOUND),
        ("a%20b.jpg/c", ErrorCode.NOT_FOUND),
        ("a%20b.jpg/", None),
        ("x" * 300, ErrorCode.INVALID_REFERENCE),
        ("\ud800.jpg", ErrorCode.INVALID_REFERENCE),
        ("%FF%FE.jpg", ErrorCode.NOT_FOUND),
    ],
)
def test_a_file_that_cannot_be_had(root, path, code):
    if code is None:
        assert fetch(f"file://{root}/{path}", file_roots=[str(root)]) == IMAGE
    else:
        assert failure(f"file://{root}/{path}", file_roots=[str(root)]).code is code


def test_a_file_that_may_not_be_read(root, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "_open", refused)
    assert failure(f"file://{root}/a%20b.jpg", file_roots=[str(root)]).code is ErrorCode.ACCESS_DENIED


def test_the_size_of_a_file_is_limited(root):
    assert fetch(f"file://{root}/a%20b.jpg", file_roots=[str(root)], max_bytes=len(IMAGE)) == IMAGE
    error = failure(f"file://{root}/a%20b.jpg", file_roots=[str(root)], max_bytes=len(IMAGE) - 1)
    assert error.code is ErrorCode.TOO_LARGE


def test_no_descriptor_is_left_open(root):
    (root / "folder").mkdir()

    def some():
        for name in ("a%20b.jpg", "missing/x", "folder", "folder/x"):
            try:
                files.read_file(f"{root}/{name.replace('%20', ' ')}", [str(root)], max_bytes=1 << 20)
            except ImageError:
                continue

    def opened():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = opened()
    some()
    assert opened() == before


# data:


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_data_is_decoded_whatever_its_size(size):
    data = random.Random(size).randbytes(size)
    assert fetch("data:image/png;base64," + base64.b64encode(data).decode()) == data


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("data:image/png;base64,***", ErrorCode.INVALID_REFERENCE),
        ("data:image/png;base64," + "*" * (1 << 20), ErrorCode.INVALID_REFERENCE),
        ("data:nothing", ErrorCode.INVALID_REFERENCE),
        ("data:;base64," + "A" * 4000, ErrorCode.TOO_LARGE),
        ("data:;base64," + "A" * (3 << 20), ErrorCode.TOO_LARGE),
    ],
)
def test_bad_data(reference, code):
    limit = 2 << 20 if "*" in reference or len(reference) > 10_000 else 1000
    assert failure(reference, max_bytes=limit).code is code


# Blobs

SHA256 = "ab" * 32


def test_a_blob_is_read_in_a_thread_with_the_names_it_was_parked_under():
    seen = []

    def read_blob(*names):
        seen.append((names, threading.current_thread() is threading.main_thread()))
        return IMAGE

    assert fetch(f"blob:{SHA256}", read_blob=read_blob) == IMAGE
    assert seen == [(("job", "chunk", SHA256), False)]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (None, ErrorCode.NOT_FOUND),
        (bytes(1001), ErrorCode.TOO_LARGE),
        (LedgerUnavailable(), ErrorCode.FETCH_FAILED),
        (RuntimeError("redis://user:secret@host"), ErrorCode.FETCH_FAILED),
        (TimeoutError(), ErrorCode.FETCH_FAILED),
    ],
)
def test_a_blob_that_cannot_be_had(answer, code):
    def read_blob(*_):
        if isinstance(answer, Exception):
            raise answer
        return answer

    error = failure(f"blob:{SHA256}", read_blob=read_blob, max_bytes=1000, keep_results_seconds=1)
    assert error.code is code
    assert "secret" not in str(error)


@pytest.mark.parametrize("deadline", [0.2, 0, -1])
def test_a_ledger_that_hangs_is_given_up_at_the_deadline(deadline):
    released = threading.Event()
    try:
        error = failure(f"blob:{SHA256}", read_blob=lambda *_: released.wait(30), deadline_seconds=deadline)
    finally:
        released.set()
    assert error.code is ErrorCode.FETCH_TIMEOUT


# Refused without asking anyone


@pytest.mark.parametrize(
    "reference",
    [
        "s3://../key", "s3://a..b/key", "s3://b/key", "s3://.bucket/key", "s3://bucket-/key", "s3://buc ket/key",
        "s3://bucket@evil.example/key", "s3://evil.example:80/key", "s3://bucket#x/key", "s3://" + "b" * 300 + "/key",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint:name/key",
        "s3://bucket/..", "s3://bucket/../other/key", "s3://bucket/a/../../other/key", "s3://bucket/a/./b",
    ],
)  # fmt: skip
def test_an_s3_reference_that_could_mean_something_else_is_refused(reference):
    assert failure(reference).code is ErrorCode.INVALID_REFERENCE


@pytest.mark.parametrize(
    "reference", ["s3://other/public/a", "s3://bucket/a", "s3://bucket/publicx/a", "s3://buckets/public/a"]
)
def test_a_bucket_or_prefix_off_the_allow_list(reference):
    error = failure(reference, source_allow=["s3://bucket/public", "s3://third"])
    assert error.code is ErrorCode.FORBIDDEN_SOURCE
    assert "source_allow" in str(error)


@pytest.mark.parametrize(
    "settings",
    [{"source_allow": ["bucket"]}, {"source_allow": ["s3://"]}, {"source_allow": ["s3://a..b/c"]},
     {"source_allow": ["https://bucket/x"]}, {"http_allow": ["nonsense"]}, {"http_allow": ["host:0"]},
     {"http_deny": ["10.0.0.1/8"]}, {"http_deny": ["a b"]}, {"file_roots": ["relative"]},
     {"file_roots": ["/", "/none/such"]}, {"file_roots": [__file__]}],
)  # fmt: skip
def test_bad_settings_are_refused_at_once(settings):
    with pytest.raises(SettingsError, match=next(iter(settings))):
        require_sources(Settings.load(**settings))


def test_good_settings_pass(tmp_path):
    require_sources(Settings())
    require_sources(
        Settings(
            http_allow=["127.0.0.0/8:8000", "*.example:80"], http_deny=["10.0.0.0/8"], source_allow=["s3://bucket/a"],
            file_roots=[str(tmp_path)],
        )
    )  # fmt: skip


def test_boto3_is_imported_for_s3_alone():
    script = (
        "import sys\n"
        "from classifleet.worker.ingest import Fetcher\n"
        "from classifleet.config import Settings\n"
        "Fetcher(Settings(), read_blob=lambda *_: None)\n"
        "assert not {'boto3', 'botocore', 'torch', 'redis'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# When to ask again


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None), ("", None), ("soon", None), ("-5", None), ("1.5", None), ("\u0661", None), ("9" * 400, None),
        ("0", 0), ("120", 120), (" 7 ", 7), ("999999999", 999999999),
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30), ("Wed, 21 Oct 2026 07:27:00 GMT", 0),
        ("Wed, 21 Oct 2026 07:28:30 -0000", 30), ("Wed, 21 Oct 99999 07:28:00 GMT", None),
    ],
)  # fmt: skip
def test_retry_after(header, seconds):
    from datetime import UTC, datetime

    assert retry_after_seconds(header, datetime(2026, 10, 21, 7, 28, tzinfo=UTC)) == seconds


@pytest.mark.parametrize(
    ("attempt", "retry_after", "jitter", "seconds"),
    [(1, None, 0, 0.125), (1, None, 1, 0.25), (2, None, 1, 0.5), (3, None, 1, 1.0), (1, 10, 0, 10.125),
     (60, None, 1, BACKOFF_MAX_SECONDS)],
)  # fmt: skip
def test_backoff(attempt, retry_after, jitter, seconds):
    assert retry_wait_seconds(attempt, retry_after, jitter) == pytest.approx(seconds)


# Versions of objects


@pytest.mark.parametrize(
    ("text", "key", "version"),
    [
        ("s3://bucket/a.jpg?versionId=3sL4kqtJlcpXroDTDmJ.rmSpXd3dIbrHY+/MTRCxf3vjVBH40Nr8X8gdRQBpUMLUo=", "a.jpg",
         "3sL4kqtJlcpXroDTDmJ.rmSpXd3dIbrHY+/MTRCxf3vjVBH40Nr8X8gdRQBpUMLUo="),
        ("s3://bucket/a?b?versionId=null", "a?b", "null"),
        ("s3://bucket/a?versionId=1?versionId=2", "a?versionId=1", "2"),
        ("s3://bucket/a?versionid=1", "a?versionid=1", ""),
        ("s3://bucket/a?versionId", "a?versionId", ""),
        ("s3://bucket/a&versionId=1", "a&versionId=1", ""),
    ],
)  # fmt: skip
def test_the_version_of_an_object(text, key, version):
    reference = parse_reference(text)
    assert (reference.location, reference.version, reference.text) == (key, version, text)


@pytest.mark.parametrize(
    "query", ["?versionId=", "?versionId=a b", "?versionId=a&x=1", "?versionId=ü", "?versionId=a\n"]
)
def test_a_version_that_cannot_be_one(query):
    for key in ("a", ""):
        with pytest.raises(ImageError, match=r"versionId|bucket/key") as caught:
            parse_reference(f"s3://bucket/{key}{query}")
        assert caught.value.code is ErrorCode.INVALID_REFERENCE
