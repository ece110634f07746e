"""Where `bulk` takes images from, and what `classify` is given."""

import base64
import os
from pathlib import Path

import pytest

from classifleet.config import InvalidRequest, Settings, parse_reference
from classifleet.producer.cli._inputs import read_inputs
from classifleet.producer.cli._manifest import read_rows
from classifleet.producer.cli._reader import Reader, file_reference
from classifleet.producer.cli._retry import next_name
from classifleet.producer.cli._sources import Globs, open_source

JPEG = b"\xff\xd8 a picture"


def source(text, *, embedded=False, out=None, **settings):
    return open_source(str(text), Settings.load(**settings), embedded=embedded, out=out)


def items(where, wanted=Globs()):  # noqa: B008 - immutable
    return list(where.items(wanted))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "uploads"
    for name in ("b.jpg", "a.png", "2026/01/c.jpg", "2026/01/notes.txt", "2026/d.jpg"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG + name.encode())
    return root


# Folders


def test_a_folder_is_every_file_below_it_by_relative_path_in_order(folder):
    found = items(source(folder))
    assert [name for name, _ in found] == ["2026/01/c.jpg", "2026/01/notes.txt", "2026/d.jpg", "a.png", "b.jpg"]
    assert dict(found)["2026/d.jpg"] == JPEG + b"2026/d.jpg"


def test_an_embedded_worker_reads_the_folder_itself(folder):
    where = source(folder, embedded=True)
    assert dict(items(where))["a.png"] == f"file://{folder}/a.png"
    assert where.folders() == [str(folder)]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), ["2026/01/c.jpg", "2026/01/notes.txt", "2026/d.jpg", "a.png", "b.jpg"]),
        (("*.jpg",), (), ["2026/01/c.jpg", "2026/d.jpg", "b.jpg"]),
        (("*.jpg", "*.png"), ("2026/*",), ["a.png", "b.jpg"]),
        (("2026/*.jpg",), (), ["2026/01/c.jpg", "2026/d.jpg"]),
        ((), ("notes.txt", "b.*"), ["2026/01/c.jpg", "2026/d.jpg", "a.png"]),
        (("c.jpg",), (), ["2026/01/c.jpg"]),
        (("*.JPG",), (), []),
    ],
)
def test_globs_choose_by_whole_id_or_by_name(folder, include, exclude, expected):
    assert [name for name, _ in items(source(folder), Globs(include, exclude))] == expected


def test_the_results_are_no_images_when_they_lie_in_the_source(folder):
    out = folder / "results"
    out.mkdir()
    (out / "results.ndjson").write_text("{}")
    assert "results/results.ndjson" not in dict(items(source(folder, out=out)))
    with pytest.raises(InvalidRequest, match="source and the destination"):
        source(folder, out=folder)


def test_a_name_that_is_no_text_is_read_here_and_escaped_in_the_id(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(JPEG)
    assert items(source(tmp_path, embedded=True)) == [("caf\\xe9.jpg", JPEG)]


def test_names_are_percent_encoded_for_the_worker(tmp_path):
    (tmp_path / "größe #1?.jpg").write_bytes(JPEG)
    [(name, ref)] = items(source(tmp_path, embedded=True))
    assert name == "größe #1?.jpg"
    assert parse_reference(ref).location == str(tmp_path / "größe #1?.jpg")


def test_what_cannot_be_sent_is_left_to_the_worker_and_said(tmp_path, capsys):
    (tmp_path / "big.jpg").write_bytes(b"x" * 11)
    (tmp_path / "good.jpg").write_bytes(JPEG[:5])
    found = dict(items(source(tmp_path, max_bytes=10)))
    assert found == {"big.jpg": f"file://{tmp_path}/big.jpg", "good.jpg": JPEG[:5]}
    assert "more than 10 bytes (CLASSIFLEET_MAX_BYTES); left to the worker" in capsys.readouterr().err


def test_files_that_vanish_or_are_none_are_referred_to(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    reader = Reader(max_bytes=100)
    for path in (tmp_path / "gone.jpg", tmp_path / "pipe", tmp_path, tmp_path / "a\0b"):
        assert reader.read(path) == file_reference(path)
    said = capsys.readouterr().err
    assert "gone.jpg cannot be sent: No such file or directory" in said
    assert "pipe cannot be sent: it is no regular file" in said


def test_a_file_that_may_not_be_read_is_referred_to(tmp_path, monkeypatch, capsys):
    (tmp_path / "secret.jpg").write_bytes(JPEG)

    def refuse(path):  # the person who runs the tests may be root, who may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert items(source(tmp_path)) == [("secret.jpg", f"file://{tmp_path}/secret.jpg")]
    assert "secret.jpg cannot be sent: Permission denied; left to the worker" in capsys.readouterr().err


def test_only_the_first_such_files_are_named(tmp_path, capsys):
    reader = Reader(max_bytes=100)
    for number in range(100):
        reader.read(tmp_path / f"{number}.jpg")
    assert len(capsys.readouterr().err.splitlines()) == 6


@pytest.mark.parametrize("wanted", [Globs(), Globs(include=("*.gif",))])
def test_nothing_to_do_is_said_before_anything_starts(tmp_path, wanted):
    (tmp_path / "empty").mkdir()
    where = source(tmp_path)
    if wanted.include:
        (tmp_path / "a.jpg").write_bytes(JPEG)
    with pytest.raises(InvalidRequest, match="there is no image to classify"):
        where.check(wanted)


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(InvalidRequest, match="there is no such folder or manifest"):
        source(tmp_path / "nothing")


def test_a_picture_is_no_source(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    with pytest.raises(InvalidRequest, match="classifleet classify"):
        source(tmp_path / "a.jpg")


# Manifests


def manifest(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_txt_manifest_has_line_numbers_for_ids(tmp_path):
    path = manifest(tmp_path, "a.txt", "\ufeffhttps://example.com/a.jpg\n\n  s3://bucket/b c.png  \r\n")
    assert items(source(path)) == [("1", "https://example.com/a.jpg", None), ("3", "s3://bucket/b c.png", None)]


def test_a_csv_manifest_has_an_id_column_or_line_numbers(tmp_path):
    with_ids = manifest(
        tmp_path, "a.csv", 'id,url,owner\nx,https://h/a.jpg,me\n,https://h/b.jpg,you\n"y,z",https://h/c,\n'
    )
    assert [(row.id, row.ref) for row in read_rows(with_ids)] == [
        ("x", "https://h/a.jpg"),
        ("3", "https://h/b.jpg"),
        ("y,z", "https://h/c"),
    ]
    without = manifest(tmp_path, "b.csv", "path\na.jpg\nb.jpg\n")
    assert [row.id for row in read_rows(without)] == ["2", "3"]


def test_a_jsonl_manifest_has_strings_or_objects(tmp_path):
    lines = [
        '"https://h/a.jpg"',
        '{"ref": "https://h/b.jpg", "id": "b", "meta": {"owner": "me"}}',
        '{"image": "x", "id": 7}',
    ]
    path = manifest(tmp_path, "a.jsonl", "\n".join(lines))
    assert [(row.id, row.ref, row.meta) for row in read_rows(path)] == [
        ("1", "https://h/a.jpg", None),
        ("b", "https://h/b.jpg", {"owner": "me"}),
        ("7", "x", None),
    ]


def test_paths_are_relative_to_the_manifest(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = manifest(folder, "list.txt", "b.jpg\n2026/d.jpg\nmissing.jpg\ndata:,x\n")
    found = [ref for _, ref, _ in items(source(path, embedded=True))]
    assert found == [JPEG + b"b.jpg", JPEG + b"2026/d.jpg", f"file://{folder}/missing.jpg", "data:,x"]


def test_globs_choose_manifest_ids(tmp_path):
    path = manifest(tmp_path, "a.csv", "id,ref\ncat-1,s3://b/a\ndog-1,s3://b/b\n")
    assert [item[0] for item in items(source(path), Globs(include=("dog-*",)))] == ["dog-1"]


def test_a_long_field_of_csv_is_read(tmp_path):
    image = "data:;base64," + base64.b64encode(bytes(200_000)).decode()
    path = manifest(tmp_path, "a.csv", f'ref\n"{image}"\n')
    assert [row.ref for row in read_rows(path)] == [image]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "id,picture\n1,a.jpg\n", "its first line names no column ref or url or path or image"),
        ("a.csv", "", "its first line names no column"),
        ("a.csv", "ref\n\n''\n", None),
        ("a.csv", "id,ref\nx,\n", "line 2: it has no ref"),
        ("a.csv", "id,ref\nx,https://h/a,b.jpg\n", "line 2: more fields than in line 1"),
        ("a.jsonl", '"a"\n{"ref": }\n', "line 2: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: expected an object or a string"),
        ("a.jsonl", '{"ref": 5}\n', "line 1: it has no ref"),
        ("a.jsonl", '{"ref": "a", "meta": "x"}\n', "line 1: meta: "),
        ("a.jsonl", '{"ref": "a", "meta": {"k": 1}}\n', "line 1: meta.k: "),
        ("a.jsonl", '{"ref": "a", "id": "%s"}\n' % ("x" * 1025), "line 1: id: "),
        ("a.txt", b"caf\xe9.jpg\n", "is not UTF-8"),
        ("a.txt", "\n\n", "there is no image to classify"),
        ("a.csv", "id,ref\nx,s3://b/a\nx,s3://b/b\n", "line 3: the id 'x' is given to two images"),
    ],
)
def test_a_wrong_manifest_is_refused_before_anything_starts(tmp_path, name, text, message):
    where = source(manifest(tmp_path, name, text))
    if message is None:
        where.check(Globs())
        return
    with pytest.raises(InvalidRequest, match=message):
        where.check(Globs())


# Retries


def test_a_retry_has_a_name_of_its_own_that_is_the_same_each_time():
    assert next_name("nightly") == "nightly-retry-1"
    assert next_name("nightly-retry-1") == "nightly-retry-2"
    assert next_name("nightly-retry-9") == "nightly-retry-10"


# What classify is given


def inputs(*texts, embedded=False, **settings):
    return read_inputs(map(str, texts), Settings.load(**settings), embedded=embedded)


def test_files_are_read_here_and_references_go_to_the_worker(folder):
    path = folder / "a.png"
    found = inputs(path, "https://example.com/a.jpg", "s3://bucket/key", "data:,x", "file:///srv/a.jpg")
    assert [one.ref for one in found] == [
        path,
        "https://example.com/a.jpg",
        "s3://bucket/key",
        "data:,x",
        "file:///srv/a.jpg",
    ]


def test_a_file_reference_is_a_local_file_for_an_embedded_fleet(folder):
    [one] = inputs(f"file://{folder}/a.png", embedded=True)
    assert one.ref == folder / "a.png"


def test_ids_show_no_secrets_and_no_image_bytes():
    long = "data:image/png;base64," + "A" * 5000
    signed = [f"https://h/a.jpg?signature={n}" for n in (1, 2)]
    found = inputs(long, *signed)
    assert found[0].id.startswith("data:;sha256=")
    assert [one.id for one in found[1:]] == ["https://h/a.jpg?redacted", "https://h/a.jpg?redacted (2)"]
    assert [one.ref for one in found] == [long, *signed]


def test_the_same_text_twice_is_the_same_input_twice(folder):
    first, second = inputs(folder / "a.png", folder / "a.png")
    assert first == second


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jpg", "there is no such file, and it is not a URL"),
        ("2026", "is a folder: use `classifleet bulk"),
        ("empty.jpg", "is empty"),
        ("big.jpg", "at most 100 are sent"),
        ("x" * 5000, "File name too long"),
        ("b.jpg/deeper", "Not a directory"),
    ],
)
def test_a_file_that_cannot_be_sent_is_refused_before_anything_starts(folder, name, message):
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "big.jpg").write_bytes(b"x" * 101)
    with pytest.raises(InvalidRequest, match=message):
        inputs(folder / name, max_bytes=100)


def test_names_of_saved_pictures(folder):
    found = inputs("https://h/x/cat.jpg?size=2", "data:,x", "s3://b/" + "long" * 100 + ".jpg")
    assert [one.stem for one in found] == ["cat", "image", ("long" * 100)[:60]]


def test_the_bytes_of_an_input(folder):
    settings = Settings.load()
    path = folder / "a.png"
    [local, data, file] = inputs(path, "data:;base64,eHl6", f"file://{path}")
    assert [one.read(settings) for one in (local, data, file)] == [path.read_bytes(), b"xyz", path.read_bytes()]
    [away] = inputs("http://127.0.0.1:1/x.jpg")
    with pytest.raises(OSError, match="refused"):
        away.read(settings)
