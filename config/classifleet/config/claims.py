"""The claim check: images over the inline cap wait in an object store, and their chunk's payload names their sha256.

An image lies at `<claim_store>/<namespace>/<job>/<chunk>/<sha256>`, and only the payload of that job and chunk leads
there. Its life is put, read by a worker, deleted after the chunk's commit; what nobody deleted is swept by age.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from classifleet.config.errors import MissingExtra, StorageError, StorageUnavailable
from classifleet.config.payload import Payload
from classifleet.config.reference import Reference, parse_reference
from classifleet.config.settings import Settings
from classifleet.config.storage import Store, Stores

THREADS: Final = 8  # objects of one chunk that are written or deleted at a time
SCHEME: Final = "claim:"
_log = logging.getLogger(__name__)


class Claims:
    """The images that one namespace has in its claim store. Safe to share between threads and to keep across a fork.

    Nothing is opened before the first call. Every call blocks.
    """

    def __init__(self, settings: Settings) -> None:
        # An upload is part of a call, which must not take long to say that the store is away.
        self._settings = settings.model_copy(update={"fetch_timeout_seconds": settings.connect_timeout_seconds})
        self._url = (settings.claim_store or "").rstrip("/")
        self._stores = Stores(self._settings)

    @property
    def enabled(self) -> bool:
        """Whether the setting `claim_store` is set."""
        return bool(self._url)

    def locate(self, job: str, chunk: str, sha256: str) -> Reference:
        """Where an image lies, as an `s3` or `file` reference.

        Raises:
            StorageError: No store is configured.
        """
        if not self._url:
            raise StorageError("the image waits in an object store, and the setting claim_store names none here")
        return parse_reference(f"{self._url}/{self._name(job, chunk, sha256)}")

    def put(self, job: str, chunk: str, images: Mapping[str, bytes]) -> None:
        """Store images by their sha256.

        Raises:
            StorageError, StorageUnavailable: Some may be stored all the same; repeating the call is harmless.
            MissingExtra: S3 without boto3.
        """
        store = self._store()
        _each(lambda sha256: store.put(self._name(job, chunk, sha256), images[sha256]), images)

    def get(self, job: str, chunk: str, sha256: str) -> bytes:
        """Read an image.

        Raises:
            FileNotFoundError: It is gone.
            StorageError, StorageUnavailable: It cannot be read.
        """
        return self._store().get(self._name(job, chunk, sha256))

    def delete(self, payload: Payload, keep: Container[str] = ()) -> None:
        """Delete a finished chunk's images, but for references in `keep`; what fails is logged, and swept later."""
        refs = {item.ref for item in payload.items if item.ref.startswith(SCHEME) and item.ref not in keep}
        if not refs or not self._url:
            return
        try:
            store = self._store()
            _each(lambda ref: _drop(store, self._name(payload.job, payload.chunk, ref.removeprefix(SCHEME))), refs)
        except (StorageError, StorageUnavailable, MissingExtra) as error:
            _log.warning("images of %s/%s stay in the claim store for now: %s", payload.job, payload.chunk, error)

    def sweep(self, older_than_seconds: float | None = None) -> int:
        """Delete the namespace's images older than that (default: `claim_ttl_seconds`); how many.

        Lists the whole namespace, so once an hour is often enough.

        Raises:
            StorageError, StorageUnavailable: It went no further than that.
        """
        if not self._url:
            return 0
        age = self._settings.claim_ttl_seconds if older_than_seconds is None else older_than_seconds
        prefix, before, swept = f"{self._settings.namespace}/", time.time() - age, 0
        store = self._store()
        for found in store.objects(prefix):
            if found.modified < before and _OURS.fullmatch(found.name.removeprefix(prefix)):
                _drop(store, found.name)
                swept += 1
        return swept

    def _name(self, job: str, chunk: str, sha256: str) -> str:
        return f"{self._settings.namespace}/{job}/{chunk}/{sha256}"

    def _store(self) -> Store:
        return self._stores.open(self._url)


_OURS: Final = re.compile(r"[^/]+/[^/]+/[0-9a-f]{64}")


def _drop(store: Store, name: str) -> None:
    store.delete(name)
    store.prune(name)


def _each(function: Callable[[str], object], names: Collection[str]) -> None:
    """Call the function for every name, a few at a time.

    The threads live no longer than that, so that a fork meets none.
    """
    if len(names) < 2:
        for name in names:
            function(name)
        return
    with ThreadPoolExecutor(min(THREADS, len(names)), thread_name_prefix="classifleet-claims") as pool:
        for _ in pool.map(function, names):
            pass
