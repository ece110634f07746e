"""The S3 reader against a real S3 server."""

import pytest

from classifleet.config import ErrorCode
from classifleet.worker.ingest.s3_boto import BotoCall
from classifleet.worker.ingest.s3_obstore import ObstoreReader
from tests.support.s3 import CLIENTS, code_of, fetch

IMAGE = b"\xff\xd8 an image " * 50_000


KEYS = (
    "a.jpg", "folder/b c.jpg", "größe/图.jpg", "100%/a%2Fb+c?x=1#y", "~!*'()/&=;,", "%2e%2e/a", "...", "a..b/c", "😀",
    'quo"te<>|^`{}[]', "?versionid=1", "?versionId", "versionId=1", "e\u0301", "\u00e9", " a ", "a//b",
)  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS)
def test_an_object_is_read_under_its_very_key(s3, client):
    """Each key holds itself, so that no key is taken for another; what is left to boto3 is among them."""
    for key in KEYS:
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=key.encode() + IMAGE)
    results = fetch({**s3.settings_kwargs, "s3_client": client}, *(f"{s3.url}/{key}" for key in KEYS))
    assert [result[: -len(IMAGE)].decode() for result in results] == list(KEYS)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_version_is_read_by_its_id(s3, client):
    s3.client.put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration={"Status": "Enabled"})
    bodies = [IMAGE + bytes([number]) for number in range(3)]
    for key in ("v 1/ü.jpg", "a//b"):
        versions = [s3.client.put_object(Bucket=s3.bucket, Key=key, Body=body)["VersionId"] for body in bodies]
        settings, url = {**s3.settings_kwargs, "s3_client": client}, f"{s3.url}/{key}"
        assert fetch(settings, *(f"{url}?versionId={version}" for version in versions)) == bodies
        assert fetch(settings, url) == [bodies[-1]]
        s3.client.delete_object(Bucket=s3.bucket, Key=key)
        gone, still = fetch(settings, url, f"{url}?versionId={versions[0]}")
        assert code_of(gone) is ErrorCode.NOT_FOUND
        assert still == bodies[0]
        (unknown,) = fetch(settings, f"{url}?versionId=none-such")
        assert code_of(unknown) in (ErrorCode.NOT_FOUND, ErrorCode.FETCH_FAILED, ErrorCode.INVALID_REFERENCE)


def test_an_allow_list_covers_versions_too(s3):
    results = fetch({**s3.settings_kwargs, "source_allow": [f"{s3.url}/public"]}, f"{s3.url}/private/a?versionId=1")
    assert code_of(results[0]) is ErrorCode.FORBIDDEN_SOURCE


def test_obstore_reads_unless_boto3_is_asked_for(s3, monkeypatch):
    def read(call):
        calls.append(call)
        return b"by boto3"

    calls = []
    monkeypatch.setattr(BotoCall, "read", read)
    s3.client.put_object(Bucket=s3.bucket, Key="a.jpg", Body=IMAGE)
    assert fetch(s3.settings_kwargs, f"{s3.url}/a.jpg", f"{s3.url}/a//jpg") == [IMAGE, b"by boto3"]
    assert fetch({**s3.settings_kwargs, "s3_client": "boto3"}, f"{s3.url}/a.jpg") == [b"by boto3"]
    assert len(calls) == 2


def test_boto3_reads_where_obstore_is_not_installed(s3, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    s3.client.put_object(Bucket=s3.bucket, Key="a.jpg", Body=IMAGE)
    monkeypatch.setattr(ObstoreReader, "read", None)
    assert fetch(s3.settings_kwargs, f"{s3.url}/a.jpg") == [IMAGE]


@pytest.mark.parametrize("client", CLIENTS)
def test_many_objects_at_one_time(s3, client):
    for number in range(20):
        s3.client.put_object(Bucket=s3.bucket, Key=f"{number}.jpg", Body=bytes([number]) * 1000)
    results = fetch(
        {**s3.settings_kwargs, "fetch_concurrency": 4, "s3_client": client}, *(f"{s3.url}/{n}.jpg" for n in range(20))
    )
    assert results == [bytes([number]) * 1000 for number in range(20)]


@pytest.mark.parametrize("client", CLIENTS)
def test_what_is_not_there(s3, client):
    results = fetch({**s3.settings_kwargs, "s3_client": client}, f"{s3.url}/none.jpg", "s3://no-such-bucket/none.jpg")
    assert [code_of(result) for result in results] == [ErrorCode.NOT_FOUND] * 2


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("size", "fits"), [(1000, True), (1001, False)])
def test_the_size_is_limited(s3, size, fits, client):
    s3.client.put_object(Bucket=s3.bucket, Key="image", Body=bytes(size))
    (result,) = fetch({**s3.settings_kwargs, "max_bytes": 1000, "s3_client": client}, f"{s3.url}/image")
    assert result == bytes(size) if fits else code_of(result) is ErrorCode.TOO_LARGE


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials(s3, monkeypatch, variable, client):
    monkeypatch.setenv(variable, "wrong")
    (result,) = fetch({**s3.settings_kwargs, "s3_client": client}, f"{s3.url}/image")
    assert code_of(result) is ErrorCode.ACCESS_DENIED


@pytest.mark.parametrize("client", CLIENTS)
def test_no_credentials(s3, monkeypatch, client):
    for variable in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(variable)
    (result,) = fetch({**s3.settings_kwargs, "s3_client": client}, f"{s3.url}/image")
    assert code_of(result) is ErrorCode.ACCESS_DENIED


def test_only_what_is_below_an_allowed_prefix_is_read(s3):
    keys = ["public/a", "public/deep/a", "public-not/a", "a", "exact"]
    for key in keys:
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"x")
    allowed = {**s3.settings_kwargs, "source_allow": [f"{s3.url}/public", f"{s3.url}/exact"]}
    others = [
        f"{s3.url}x/public/a",
        f"{s3.url}/public/..\\a",
        f"{s3.url}/public/../a",
        f"{s3.url}/public/./a",
        f"{s3.url}/public/..",
    ]
    results = fetch(allowed, *(f"{s3.url}/{key}" for key in keys), *others)
    refused, invalid = ErrorCode.FORBIDDEN_SOURCE, ErrorCode.INVALID_REFERENCE
    assert results[:2] == [b"x"] * 2
    assert [code_of(results[2]), code_of(results[3])] == [refused] * 2
    assert results[4] == b"x"
    assert [code_of(result) for result in results[5:]] == [refused, invalid, invalid, invalid, invalid]
