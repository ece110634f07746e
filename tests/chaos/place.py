"""What all scenarios share: the model, the photos on disk, over http and in S3, and the S3 server."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tests.chaos.web import GatedWeb
from tests.support.services import S3Server

PHOTO_BUCKET: Final = "chaos-photos"
SINK_BUCKET: Final = "chaos-sink"
MOST_PHOTOS: Final = 100


@dataclass(frozen=True)
class Place:
    """Servers and data that no scenario breaks; those that break S3 put a proxy before it."""

    models: Path
    photos: tuple[Path, ...]
    web: GatedWeb
    s3: S3Server
    _turn: itertools.count[int] = field(default_factory=itertools.count)

    def photo(self) -> Path:
        """The next photo."""
        return self.photos[next(self._turn) % len(self.photos)]

    def file(self) -> str:
        """The next photo as a file."""
        return "file://" + quote(str(self.photo()))

    def ref(self) -> str:
        """The next photo, by one of the three ways in turn."""
        way = next(self._turn) % 3
        if way == 0:
            return self.file()
        photo = self.photo()
        return f"s3://{PHOTO_BUCKET}/{photo.name}" if way == 1 else self.web.url(photo.name)

    def upload(self) -> None:
        """Put the photos into S3."""
        client = self.s3.client()
        for bucket in (PHOTO_BUCKET, SINK_BUCKET):
            client.create_bucket(Bucket=bucket)
        for photo in self.photos:
            client.put_object(Bucket=PHOTO_BUCKET, Key=photo.name, Body=photo.read_bytes())
