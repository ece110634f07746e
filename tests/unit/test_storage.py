"""Object storage: the folder and the S3 store keep the same promises; the S3 half runs on a real server."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from classifleet.config import MissingExtra, Settings, StorageError, StorageUnavailable
from classifleet.config.storage import FolderStore, S3Store, Store, open_store
from tests.conftest import S3

CLOCKS_APART_SECONDS = 2.0  # S3 rounds to seconds
NAMES = ["a.txt", "a/b.txt", "a/c/d.txt", "a-b/e.txt", "a.d/f.txt", "b", "z ä?#%41.txt"]


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of either kind."""
    if request.param == "folder":
        return open_store(f"file://{tmp_path}/store", Settings.load())
    s3: S3 = request.getfixturevalue("s3")
    return open_store(f"{s3.url}/some/prefix", Settings.load(**s3.settings_kwargs))


def test_what_is_put_is_got_replaced_and_deleted(store: Store) -> None:
    store.put("job/parts/0-1.ndjson", b"one")
    assert store.get("job/parts/0-1.ndjson") == b"one"
    store.put("job/parts/0-1.ndjson", b"two\x00\xff")
    assert store.get("job/parts/0-1.ndjson") == b"two\x00\xff"
    store.delete("job/parts/0-1.ndjson")
    assert list(store.names()) == []


def test_what_is_absent_is_not_found_and_can_be_deleted(store: Store) -> None:
    store.put("a", b"")
    for name in ("b", "b/c", "a/b"):
        with pytest.raises(FileNotFoundError):
            store.get(name)
        store.delete(name)
    assert list(store.names()) == ["a"]


def test_names_come_in_the_order_of_their_keys(store: Store) -> None:
    for name in reversed(NAMES):
        store.put(name, b"x")
    names = list(store.names())
    if isinstance(store, S3Store):  # this server sorts folder by folder; AWS by key
        assert names == list(store.names())
        names.sort()
    assert names == sorted(NAMES)


def test_names_below_a_prefix(store: Store) -> None:
    for name in NAMES:
        store.put(name, b"x")
    for prefix in ("", "a", "a/", "a/c/", "a/c", "a.", "z", "nothing", "nothing/", "a.txt/"):
        assert sorted(store.names(prefix)) == sorted(name for name in NAMES if name.startswith(prefix)), prefix


def test_objects_have_the_time_of_writing(store: Store) -> None:
    before = time.time() - CLOCKS_APART_SECONDS
    for name in NAMES:
        store.put(name, b"x")
    found = list(store.objects("a/"))
    assert sorted(each.name for each in found) == ["a/b.txt", "a/c/d.txt"]
    assert all(before < each.modified < time.time() + CLOCKS_APART_SECONDS for each in found)


def test_empty_folders_are_pruned_up_to_the_root(store: Store) -> None:
    for name in ("a/b/c", "a/d"):
        store.put(name, b"x")
    store.prune("a/b/c")  # nothing is empty
    store.delete("a/b/c")
    store.prune("a/b/c")
    store.prune("no/such/object")
    assert list(store.names()) == ["a/d"]
    store.delete("a/d")
    store.prune("a/d")
    if isinstance(store, FolderStore):
        assert list(store.root.iterdir()) == []
    store.put("a/b/c", b"x")
    assert store.get("a/b/c") == b"x"


def test_a_folder_that_is_pruned_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(folder: Path) -> bool:  # `mkdir` looks whether what it found in its way is a folder
        if folder == tmp_path / "job" and not pruned:
            pruned.append(folder)
            folder.rmdir()
        return is_dir(folder)

    pruned: list[Path] = []
    is_dir = Path.is_dir
    (tmp_path / "job").mkdir()
    store = FolderStore(tmp_path)
    monkeypatch.setattr(Path, "is_dir", look)
    store.put("job/part", b"x")
    assert pruned
    assert store.get("job/part") == b"x"


def test_the_url_opens_the_same_store(store: Store, request: pytest.FixtureRequest) -> None:
    store.put("a b/é.txt", b"x")
    kwargs = request.getfixturevalue("s3").settings_kwargs if store.url.startswith("s3://") else {}
    again = open_store(store.url, Settings.load(**kwargs))
    assert again.get("a b/é.txt") == b"x"


def test_a_store_stays_within_its_prefix(s3: S3) -> None:
    settings = Settings.load(**s3.settings_kwargs)
    for prefix in ("one", "one-more"):
        open_store(f"{s3.url}/{prefix}", settings).put("x", prefix.encode())
    assert list(open_store(f"{s3.url}/one", settings).names()) == ["x"]
    assert set(open_store(s3.url, settings).names()) == {"one-more/x", "one/x"}


def test_s3_lists_more_than_a_page_and_no_folder_marks(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"{s3.url}/p", Settings.load(**s3.settings_kwargs))
    assert isinstance(store, S3Store)
    names = [f"{i:03}" for i in range(7)]
    for name in names:
        store.put(name, b"")
    s3.client.put_object(Bucket=s3.bucket, Key="p/folder/")
    pages = []
    page = store._client.list_objects_v2

    def two_at_a_time(**arguments: Any) -> Any:
        pages.append(arguments)
        return page(**arguments, MaxKeys=2)

    monkeypatch.setattr(store._client, "list_objects_v2", two_at_a_time)
    assert list(store.names()) == names
    assert len(pages) >= 4


@pytest.mark.parametrize(
    "url", ["", "bucket/key", "/folder", "s3://", "s3:///key", "file://host/a", "file:a", "https://example.com/"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(StorageError, match="is neither s3://bucket/prefix nor file:///folder"):
        open_store(url, Settings.load())


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", ".."])
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    store = FolderStore(tmp_path / "store")
    for call in (
        store.get,
        store.delete,
        lambda name: store.put(name, b"x"),
        lambda name: list(store.names(name + "/")),
    ):
        with pytest.raises(StorageError, match="leads out of file://"):
            call(name)
    assert list(tmp_path.iterdir()) == []


def test_links_are_listed_only_when_they_stay_inside(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "file").write_bytes(b"x")
    (inside / "to-inside").symlink_to(inside / "file")
    (inside / "to-outside").symlink_to(outside / "file")
    (inside / "to-folder").symlink_to(outside)
    (inside / "to-itself").symlink_to(inside)
    (inside / "to-nothing").symlink_to(inside / "nothing")
    assert list(FolderStore(inside).names()) == ["file", "to-inside"]


def test_hidden_files_are_listed_and_half_written_ones_are_not(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    (tmp_path / ".hidden.jpg").write_bytes(b"x")
    seen: list[list[str]] = []
    original = Path.replace

    def look(self: Path, target: Path) -> Path:
        seen.append([*(path.name for path in tmp_path.iterdir() if path == self), *store.names()])
        return original(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", look)
        store.put("a", b"x")
    assert len(seen) == 1
    assert len(seen[0]) == 2, "the half-written file was there, and only the hidden one was listed"
    assert seen[0][1] == ".hidden.jpg"
    assert list(store.names()) == [".hidden.jpg", "a"]


def test_a_failed_write_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    for name in ("file/below", "folder"):
        with pytest.raises(StorageError, match=rf"cannot write .*/{name}: "):
            store.put(name, b"x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_what_cannot_be_read_or_deleted_is_a_storage_error(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"cannot read .*/folder: Is a directory"):
        store.get("folder")
    with pytest.raises(StorageError, match=r"cannot delete .*/folder: "):
        store.delete("folder")


def test_readers_never_see_half_an_object(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    contents = [bytes([value]) * 200_000 for value in range(4)]
    store.put("x", contents[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                store.put("x", content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [store.get("x") for _ in range(200)]
    finally:
        stop.set()
        writer.join()
    assert all(content in contents for content in seen)
    assert len(set(seen)) > 1, "the writer wrote while we read"


def test_s3_refusals_are_told_apart(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.load(**s3.settings_kwargs)
    nowhere = open_store("s3://no-such-bucket/p", settings)
    for call in (lambda: nowhere.put("x", b""), lambda: nowhere.get("x"), lambda: list(nowhere.names())):
        with pytest.raises(StorageError, match="NoSuchBucket"):
            call()
    with pytest.raises(StorageError, match="Invalid bucket name"):
        open_store("s3://not a bucket/p", settings).get("x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="SignatureDoesNotMatch"):
        open_store(s3.url, settings).get("x")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StorageError, match="credentials"):
        open_store(s3.url, settings).get("x")


class OneAnswer:
    """An HTTP server that gives each request the same raw answer; None closes the connection."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                if self.answer is not None:
                    connection.recv(65536)
                    connection.sendall(self.answer)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


@pytest.fixture
def answering() -> Iterator[Any]:
    """answering(raw) -> URL of a server that answers so."""
    servers: list[OneAnswer] = []

    def start(answer: bytes | None) -> str:
        servers.append(OneAnswer(answer))
        return servers[-1].url

    yield start
    for server in servers:
        server.close()


def http(status: str, body: bytes = b"", length: int | None = None) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    "answer",
    [
        None,
        http("503 Slow Down", b"<Error><Code>SlowDown</Code></Error>"),
        http("500 Internal Server Error"),
        http("200 OK", b"half", length=8),
    ],
    ids=["closes", "slow-down", "500", "half"],
)
def test_an_ailing_store_is_unavailable(answering: Any, monkeypatch: pytest.MonkeyPatch, answer: bytes | None) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda **_: 0)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    settings = Settings.load(s3_endpoint_url=answering(answer), s3_path_style=True)
    with pytest.raises(StorageUnavailable, match="s3://bucket/x: "):
        open_store("s3://bucket", settings).get("x")


def test_a_store_that_is_down_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    settings = Settings.load(s3_endpoint_url=f"http://127.0.0.1:{port}", s3_path_style=True)
    with pytest.raises(StorageUnavailable, match="Could not connect"):
        open_store("s3://bucket", settings).get("x")


def test_without_boto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingExtra, match=r"an s3:// URL needs the extra \[s3\]"):
        open_store("s3://bucket", Settings.load())


@pytest.mark.parametrize("endpoint", ["not a url", "localhost:9000"])
def test_a_wrong_endpoint_is_a_storage_error(endpoint: str) -> None:
    with pytest.raises(StorageError, match="no S3 client: Invalid endpoint"):
        open_store("s3://bucket", Settings.load(s3_endpoint_url=endpoint))


def test_a_folder_that_cannot_be_read_is_left_out_if_somebody_is_told(tmp_path, monkeypatch):
    """Otherwise it is an error: a sink with holes must not look whole."""
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"")
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    told: list[StorageError] = []
    assert list(FolderStore(tmp_path, unreadable=told.append).names()) == ["open/a"]
    assert "closed" in str(told[0])
    with pytest.raises(StorageError, match="closed"):
        list(FolderStore(tmp_path).names())
