"""A worker that says all it can, given images, URLs and servers with secrets: none of them is said by anything."""

from __future__ import annotations

import base64
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import redis
from opentelemetry.sdk.trace import TracerProvider

from classifleet.producer import Fleet
from classifleet.producer.embedded import free_ports
from classifleet.worker.scrubbing import scrub
from tests.support import RedisServer, wait_until
from tests.support.collector import start_collector
from tests.support.fleet import Worker, start_worker
from tests.support.tiny import MODEL, add_tiny

SECRET = "S3CR3T"
IMAGE = f"no image, but {SECRET} bytes".encode()
CHUNK_SIZE = 4
KEYS = ("event", "level", "logger", "timestamp")


class Host(BaseHTTPRequestHandler):
    """Not here, elsewhere, not for you, an error, something else, or nothing."""

    def do_GET(self) -> None:
        status = {"moved": 302, "denied": 403, "failing": 500, "text": 200}.get(self.path[1:].partition("?")[0], 404)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"http://user:{SECRET}@10.0.0.1/a.jpg?token={SECRET}")
        self.send_header("Content-Length", str(len(IMAGE)))
        self.end_headers()
        self.wfile.write(IMAGE)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@contextmanager
def host() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def references(web: str, closed: str) -> list[str | bytes]:
    presigned = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={SECRET}%2Fus-east-1&X-Amz-Signature={SECRET}"
    return [
        *(f"http://{web}/{name}?sig={SECRET}" for name in ("moved", "denied", "failing", "text", "missing")),
        *(f"http://{each}/bucket/a.jpg?{presigned}" for each in (web, closed)),
        f"http://user:{SECRET}@{web}/text",
        f"http://{SECRET}@{web}/text",
        f"http://10.0.0.1/a.jpg?sig={SECRET}",
        f"http://{web}/text#{SECRET}",
        f"http://{web}/a b?sig={SECRET}",
        f"http://[nonsense/?sig={SECRET}",
        f"ftp://user:{SECRET}@{web}/a.jpg",
        f"no-scheme?sig={SECRET}",
        "s3://bucket/a.jpg",
        f"data:image/png;base64,{base64.b64encode(IMAGE).decode()}",
        f"data:image/png,not%20a%20picture%20but%20{SECRET}",
        f"data:{SECRET}",
        IMAGE,
    ]


def everything_said(worker: Worker) -> str:
    probes = [worker.probe(path) for path in ("/readyz", "/livez")]
    return worker.process.log.read_text() + worker.metrics() + json.dumps(probes)


def kept(client: redis.Redis) -> bytes:
    """Every key with its value, as they are."""
    client.config_set("rdbcompression", "no")  # which also compresses what DUMP shows
    return b"\n".join(name + (client.dump(name) or b"") for name in client.scan_iter(count=1000))


@dataclass(slots=True)
class Told:
    """What was said of the images, where, and what is kept of them."""

    said: str
    spans: str
    records: str
    kept: bytes
    ids: list[str]
    lines: list[dict[str, object]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    folder, [closed] = tmp_path_factory.mktemp("told"), free_ports(1)
    with (
        pytest.MonkeyPatch.context() as patch,
        RedisServer.start(folder / "redis") as server,
        start_collector() as collector,
        host() as web,
    ):
        with server.client() as client:
            client.config_set("requirepass", SECRET)
        url = f"redis://:{SECRET}@127.0.0.1:{server.port}/0"
        settings = {
            "LOG_LEVEL": "debug",
            "MODEL_REPOSITORY": str(add_tiny(folder / "models")),
            "HTTP_ALLOW": f"{web},127.0.0.1:{closed}",
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{closed}",
            "FETCH_TIMEOUT_SECONDS": "2",
        }
        environment = {
            "AWS_ACCESS_KEY_ID": f"AKIA{SECRET}",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={SECRET}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        with start_worker(url, folder / "worker.log", settings=settings) as worker:
            ids, records = run(url, references(web, f"127.0.0.1:{closed}"))
            wait_until(lambda: len(collector.named("image")) == len(ids), "the spans", 20)
            with redis.Redis.from_url(url) as client:
                stored = kept(client)
            said = everything_said(worker)
            server.process.signal(signal.SIGKILL)
            wait_until(lambda: '"away' in worker.process.log.read_text(), "the worker to miss Redis", 20)
        log = worker.process.log.read_text()
        spans = b"".join(collector.bodies).decode("latin-1")
        lines = [json.loads(line) for line in log.splitlines()]
        yield Told(said + log, spans, json.dumps(records), stored, ids, lines)


def run(url: str, refs: list[str | bytes]) -> tuple[list[str], list[dict[str, object]]]:
    """The ids that were given, some of which are URLs, too, and the records without them."""
    ids = [f"https://me:{SECRET}@h/{n}?{SECRET}" if n % 2 else str(n) for n, _ in enumerate(refs)]
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("a shop")
    with Fleet(url) as fleet:
        with tracer.start_as_current_span("upload"):
            job = fleet.submit_many(zip(ids, refs, strict=True), models=MODEL, chunk_size=CHUNK_SIZE)
        assert job.wait(60).failed == len(refs), "none of them is an image"
        records = [result.to_dict() for result in job.results()]
    return ids, [{name: value for name, value in record.items() if name != "id"} for record in records]


@pytest.mark.parametrize("where", ["said", "spans", "records"])
def test_no_secret_is_said(told: Told, where: str) -> None:
    text = getattr(told, where)
    assert text
    assert SECRET not in text
    assert base64.b64encode(IMAGE).decode() not in text


def test_no_secret_is_kept_when_all_is_done(told: Told) -> None:
    """But for ids, which are the caller's own. No dead letter is among them: it would keep its reference."""
    stored = told.kept
    for image_id in told.ids:
        stored = stored.replace(image_id.encode(), b"")
    assert b"records:" in stored
    assert SECRET.encode() not in stored


def test_lines_are_json_and_name_the_image(told: Told) -> None:
    assert all(line.keys() >= set(KEYS) for line in told.lines)
    assert {"listening", "ready", "chunk", "image"} <= {line["event"] for line in told.lines}
    images = [line for line in told.lines if line["event"] == "image"]
    assert len(images) == len(told.ids)
    assert {line["id"] for line in images} == {scrub(image_id) for image_id in told.ids}
    assert all(line["job"] and line["chunk"] and line["code"] and line["trace_id"] for line in images)
    assert {str(line["logger"]).partition(".")[0] for line in told.lines if line["level"] == "debug"} == {
        "classifleet"
    }


def test_on_level_info_a_chunk_is_one_line(told: Told) -> None:
    about = [line for line in told.lines if line["level"] != "debug" and "job" in line]
    assert {line["event"] for line in about} == {"chunk"}
    assert len(about) == len({line["chunk"] for line in about}) == -(-len(told.ids) // CHUNK_SIZE)
    assert sum(int(str(line["failed"])) for line in about) == len(told.ids)
    assert {(line["level"], line["queue"], line["outcome"]) for line in about} == {
        ("info", "classify.default.bulk", "committed")
    }
