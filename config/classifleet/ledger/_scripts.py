"""The ledger's scripts. Their source is in `lua/`, a file each, with `prelude.lua` before every one of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

_FOLDER: Final = files(__package__) / "lua"
_PRELUDE: Final = (_FOLDER / "prelude.lua").read_text()


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name by which Redis caches it."""

    name: str
    source: str
    sha1: str


def _script(name: str) -> Script:
    source = _PRELUDE + (_FOLDER / f"{name}.lua").read_text()
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


# A producer's
PUT: Final = _script("put")
PUT_BLOB: Final = _script("put_blob")
TAKE_BACK_BLOBS: Final = _script("take_back_blobs")
CANCEL: Final = _script("cancel")
DELETE: Final = _script("delete")
DISCARD: Final = _script("discard")
NOTE_REQUEUED: Final = _script("note_requeued")
# A worker's
BEGIN: Final = _script("begin")
MARK: Final = _script("mark")
RENEW: Final = _script("renew")
COMMIT: Final = _script("commit")
HAND_BACK: Final = _script("hand_back")
REVOKE: Final = _script("revoke")
FAILED: Final = _script("failed")
SINK_FAILED: Final = _script("sink_failed")
PARK: Final = _script("park")
UNPARK: Final = _script("unpark")
# The reconciler's
HOLD: Final = _script("hold")
EXPIRE_LEASES: Final = _script("expire_leases")
ABANDON: Final = _script("abandon")
FINISH: Final = _script("finish")
# Anyone's
ENLIST: Final = _script("enlist")
STRIKE_OFF: Final = _script("strike_off")
WORKERS: Final = _script("workers")

ALL: Final = (
    PUT, PUT_BLOB, TAKE_BACK_BLOBS, CANCEL, DELETE, DISCARD, NOTE_REQUEUED,
    BEGIN, MARK, RENEW, COMMIT, HAND_BACK, REVOKE, FAILED, SINK_FAILED, PARK, UNPARK,
    HOLD, EXPIRE_LEASES, ABANDON, FINISH,
    ENLIST, STRIKE_OFF, WORKERS,
)  # fmt: skip
