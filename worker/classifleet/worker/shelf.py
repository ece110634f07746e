"""Which models are here, and in what state: loaded at start, at first use, when they appear; unloaded when unused.

          preloaded: waiting ─┐                     ┌─► ready ─► (evicted) lazy
    lazy ─► (first use) ──────┴─► loading ─► warming ┤
                                                     └─► failed ─► (its files change, or SIGHUP) again

One thread, the keeper, loads and unloads; whoever needs a model that is not ready waits for it, and nobody else does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from queue import SimpleQueue
from typing import Final

import structlog

from classifleet.config import ErrorCode, ImageError, ModelError, Settings
from classifleet.config.errors import ClassifleetError
from classifleet.ledger import Offer
from classifleet.worker import versions
from classifleet.worker.device import Device
from classifleet.worker.instruments import MODEL_BYTES, MODEL_EVICTIONS, MODEL_LOAD_FAILURES, MODELS
from classifleet.worker.loading import ModelLoader, file_bytes
from classifleet.worker.models import ModelDescription, Repository, open_repository
from classifleet.worker.models.failures import brief
from classifleet.worker.models.repository import keep
from classifleet.worker.shelved import Entry, NoRoom, files_of, new_entry
from classifleet.worker.versions import Loaded, Residence, State

LINGER_SECONDS: Final = 600.0
"""For so long a version that nobody planned (any more) stays after its last use: a job pinned to it may go on."""
LOOK_AGAIN_SECONDS: Final = 5.0  # at most so often because of a model that is unknown
ROOM_SECONDS: Final = 60.0  # that a model waits for others to be unused, when memory is short
log = structlog.get_logger(__name__)


class Shelf:
    """The models of a worker. Safe across threads.

    Args:
        settings: `models`, `lazy_models`, `canary`, `shadow`, `models_memory_bytes`, `model_repository`.
        device: Runs them.
        linger_seconds: See `LINGER_SECONDS`.

    Attributes:
        ready: The descriptions of the models that can be asked, by name with version.
        changed: Called when `ready` or `offers` is another, on any thread.
        look_soon: Called when the repository is to be looked at, since a model is unknown.
        aside: Entered while a model is loaded, which may end the process.
    """

    def __init__(self, settings: Settings, device: Device, *, linger_seconds: float = LINGER_SECONDS) -> None:
        self._settings = settings
        self._loader = ModelLoader(settings, device, self._tell)
        self._linger_seconds = linger_seconds
        self._lock = threading.RLock()
        self._returned = threading.Condition(self._lock)
        self._entries: dict[str, Entry] = {}
        self._planned: Mapping[str, Residence] = {}
        self._available: frozenset[str] = frozenset()
        self._repository: Repository
        self._looking = threading.Lock()
        self._looked = 0.0
        self._offers: Mapping[str, Offer] = {}
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._closed = False
        self.ready: dict[str, ModelDescription] = {}
        self.changed: Callable[[], None] = lambda: None
        self.look_soon: Callable[[], None] = lambda: None
        self.aside: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def decode_threads(self) -> int:
        """That go best with the models; 0 where that was not measured."""
        return self._loader.decode_threads

    def progress(self) -> dict[str, State]:
        """How far each model is."""
        with self._lock:
            return {key: entry.state for key, entry in sorted(self._entries.items())}

    def problems(self) -> dict[str, str]:
        """Why models could not be loaded."""
        with self._lock:
            return {key: entry.problem for key, entry in self._entries.items() if entry.state == "failed"}

    def offers(self) -> Mapping[str, Offer]:
        """What a job that begins now is answered by, where it names no version."""
        return self._offers

    def loadable(self) -> tuple[str, ...]:
        """What `lacks` does not say of this worker: versions, and names that have an offer."""
        with self._lock:
            gone = {key for key, entry in self._entries.items() if entry.state == "failed"}
            found = {key for key in self._available if versions.allowed(key, self._settings.models)}
            return tuple(sorted((found | set(self._entries)) - gone | set(self._offers)))

    def fill(self) -> None:
        """Load all that is to be there from the start, in turn; then start the thread that looks after it.

        Raises:
            ModelError: There is no model, or one cannot be loaded.
        """
        repository = open_repository(self._settings.model_repository, self._settings)
        available, plan = self._plan(repository)
        for state in versions.STATES:
            MODELS.labels(state).set_function(partial(self._count, state))
        if plan.missing:
            repository.resolve(plan.missing[0])  # says which there are
        if not plan.models:
            raise ModelError(
                f"there is no model in {repository.path}: "
                "run `classifleet models build imagenet`, or `classifleet models add`"
            )
        self._repository, self._available, self._planned = repository, available, plan.models
        for key, residence in plan.models.items():
            self._entries[key] = new_entry(key, residence, usable=True)
        for key, residence in plan.models.items():
            description = repository.describe(key)
            if residence == "preloaded":
                self._install(self._entries[key], repository, description, serving=False)
                self._slim()
        if gone := [key for key, residence in plan.models.items() if residence == "preloaded" and self.missing([key])]:
            log.warning("models_memory_bytes does not hold what is loaded at the start", unloaded=gone)
        self._change()
        threading.Thread(target=self._keep, name="classifleet-models", daemon=True).start()

    def close(self) -> None:
        """Load nothing more."""
        with self._lock:
            self._closed = True
            self._returned.notify_all()
        self._work.put(None)

    def look(self, *, again: bool = False) -> None:
        """See what the repository holds now, and have it loaded and unloaded; also what failed, if `again`.

        A repository that is away, or empty, changes nothing. It is fetched once at a time.
        """
        with self._looking:
            self._look(again)
            self._looked = time.monotonic()

    def _look(self, again: bool) -> None:
        try:
            repository = open_repository(self._settings.model_repository, self._settings)
            available, plan = self._plan(repository)
        except (ClassifleetError, OSError) as error:
            log.warning("model repository not readable; nothing changes", error=str(error))
            return
        if not plan.models:
            log.warning("model repository without the models of the settings; nothing changes", has=sorted(available))
            return
        with self._lock:
            self._repository, self._available, self._planned = repository, available, plan.models
            for key, residence in plan.models.items():
                self._follow(self._entries.get(key), key, residence, again=again)
            for key in [key for key in self._entries if key not in plan.models]:
                self._abandon(self._entries[key])
            self._change()

    def tidy(self) -> None:
        """Have unloaded what nobody planned and nobody has used for a while, and what is too much."""
        keep(self._repository)
        self._work.put(self._sweep)
        self._work.put(self._slim)

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Those of the models that this worker neither has nor can load.

        A model without a version is one that no worker could offer when its job began; `begin` pins it, if one can.
        """
        return [name for name in names if not (self._known(name) if "@" in name else name in self._offers)]

    def find(self) -> None:
        """Look into the repository, unless that was done just now; who comes meanwhile waits for the same look."""
        with self._looking:
            if self.looked_long_ago():
                self._look(again=False)
                self._looked = time.monotonic()

    def looked_long_ago(self) -> bool:
        """Whether it may be looked into the repository again because of a model that is unknown."""
        return time.monotonic() - self._looked > LOOK_AGAIN_SECONDS

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the models that cannot be asked now."""
        return [key for key in keys if key not in self.ready]

    def why_not(self, key: str) -> ImageError:
        """What to say of an image that asks for a model that is not ready."""
        entry = self._entries.get(key)
        if entry is None or not entry.problem:
            return ImageError(ErrorCode.MODEL_NOT_FOUND, f"this worker has no model {key!r}")
        return ImageError(ErrorCode.MODEL_FAILED, f"{key} could not be loaded: {entry.problem}")

    @contextmanager
    def lent(self, keys: Iterable[str]) -> Iterator[list[Future[None]]]:
        """Keep models loaded while the block runs.

        Yields:
            The loads to be waited for first, none of which may be cancelled: when all have ended, each model is ready,
            or failed, or is not to be had.
        """
        entries, loads = self._lend(keys)
        try:
            yield loads
        finally:
            self._take_back(entries)

    def wish(self, key: str) -> None:
        """A model is of use, but nobody waits for it: it counts as used, and comes back if none has to go for that."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return
            entry.used_at = time.monotonic()
            limit = self._settings.models_memory_bytes
            if entry.state == "lazy" and versions.evictions(self._loaded(), entry.size_bytes, limit) == []:
                self._bring(entry)

    def _lend(self, keys: Iterable[str]) -> tuple[list[Entry], list[Future[None]]]:
        with self._lock:
            entries = [self._entries[key] for key in keys if self._known(key)]
            for entry in entries:
                entry.lent += 1
            return entries, [self._bring(entry) for entry in entries if entry.state != "ready"]

    def _take_back(self, entries: list[Entry]) -> None:
        with self._lock:
            for entry in entries:
                entry.lent -= 1
                entry.used_at = time.monotonic()
            self._returned.notify_all()

    def _known(self, key: str) -> bool:
        """Whether a model is here, or can be; one that may be loaded gets its entry."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None and key in self._available and versions.allowed(key, self._settings.models):
                entry = self._entries[key] = new_entry(key, "passing", usable=False)
            return entry is not None and entry.state != "failed"

    def _plan(self, repository: Repository) -> tuple[frozenset[str], versions.Plan]:
        """What a repository has, and what to have of it."""
        settings, available = self._settings, frozenset(repository.list())
        return available, versions.plan(
            available, settings.models, settings.lazy_models, settings.canary, settings.shadow
        )

    def _follow(self, entry: Entry | None, key: str, residence: Residence, *, again: bool) -> None:
        """Make of an entry what the plan wants it to be."""
        if entry is None:
            log.info("model found", model=key, residence=residence)
            entry = self._entries[key] = new_entry(key, residence, usable=residence == "lazy")
        entry.residence = residence
        retry = entry.state == "failed" and (again or entry.files != files_of(self._repository, key))
        passed_by = entry.state == "lazy" and not entry.usable and residence == "preloaded"
        if retry or (entry.load is None and (entry.state == "waiting" or passed_by)):
            self._bring(entry)

    def _abandon(self, entry: Entry) -> None:
        """It is in the plan no more."""
        entry.residence = "passing"
        if entry.state in ("lazy", "failed") and not entry.lent:
            del self._entries[entry.key]

    def _bring(self, entry: Entry) -> Future[None]:
        """Have a model loaded; the future ends when that has ended, in whatever way."""
        if entry.load is None:
            entry.load = Future()
            entry.state = "waiting"
            self._work.put(partial(self._load, entry))
        return entry.load

    def _keep(self) -> None:
        while work := self._work.get():
            try:
                work()
            except Exception:  # a defect must not end the thread: models would never be loaded again
                log.exception("models")

    def _load(self, entry: Entry) -> None:
        """Load a model; nothing that goes wrong with it reaches others."""
        repository, key = self._repository, entry.key
        files = files_of(repository, key)
        try:
            self._install(entry, repository, repository.describe(key), serving=True)
        except Exception as error:  # noqa: BLE001 - a model is the user's code and may raise anything
            MODEL_LOAD_FAILURES.labels(key).inc()
            log.error("model not loaded", model=key, error=brief(error))
            with self._lock:
                entry.problem, entry.files = brief(error), files
                if isinstance(error, NoRoom):  # a new version is tried again at the next look, others when asked for
                    new = entry.residence == "preloaded" and not entry.usable
                    entry.state = "waiting" if new else "lazy"
                    entry.usable |= entry.residence == "lazy"
                else:
                    entry.state, entry.usable = "failed", False
        with self._lock:
            done, entry.load = entry.load, None
            self._change()
        if done is not None:
            done.set_result(None)
        self._slim()

    def _install(self, entry: Entry, repository: Repository, description: ModelDescription, *, serving: bool) -> None:
        self._make_room(entry, file_bytes(repository, entry.key))
        with self.aside():
            size_bytes = self._loader.load(repository, description, serving=serving)
        with self._lock:
            entry.state, entry.usable, entry.problem = "ready", True, ""
            entry.size_bytes, entry.used_at = size_bytes, time.monotonic()
            self.ready[entry.key] = description
        MODEL_BYTES.labels(entry.key).set(size_bytes)

    def _make_room(self, entry: Entry, least: int) -> None:
        """Evict what must go for a file of so many bytes, and for what the model took the last time."""
        limit = self._settings.models_memory_bytes
        if 0 < limit < least:
            raise ModelError(f"{entry.key} ({least} bytes) is larger than models_memory_bytes ({limit})")
        # Measured sizes are inexact: a model that seemed larger than the limit may have all of it.
        need = max(least, min(entry.size_bytes, limit))
        self._unload(partial(self._wait_for_room, entry.key, need, least), evicted=True)

    def _wait_for_room(self, key: str, need: int, least: int) -> list[str]:
        """What to evict, once it is unused; others may take the lock meanwhile."""
        limit, end = self._settings.models_memory_bytes, time.monotonic() + ROOM_SECONDS
        while (gone := versions.evictions(self._loaded(), need, limit)) is None:
            left = end - time.monotonic()
            if left <= 0 or self._closed:
                # Or a job that asks for both, which fitted when they were loaded first, could never be done.
                gone = versions.evictions(self._loaded(), least, limit)
                if gone is None or self._closed:
                    raise NoRoom(f"no room for {key} ({need} bytes) within models_memory_bytes ({limit})")
                return gone
            self._returned.wait(left)
        return gone

    def _slim(self) -> None:
        """Evict what is too much, as far as it is unused."""
        self._unload(lambda: versions.surplus(self._loaded(), self._settings.models_memory_bytes), evicted=True)

    def _sweep(self) -> None:
        """Unload what is superfluous."""
        seconds = self._linger_seconds
        self._unload(lambda: versions.superfluous(self._loaded(), time.monotonic(), seconds), evicted=False)

    def _unload(self, choose: Callable[[], list[str]], *, evicted: bool) -> None:
        """Unload what is chosen by what is so now: since this was queued, models may have been planned, or used."""
        with self._lock:
            keys = choose()
            for key in keys:
                del self.ready[key]
                self._entries[key].state = "lazy"
                if self._entries[key].residence == "passing":
                    del self._entries[key]
            if keys:
                self._change()
        for key in keys:
            self._loader.unload(key)
            MODEL_BYTES.remove(key)
            if evicted:
                MODEL_EVICTIONS.labels(key).inc()

    def _loaded(self) -> list[Loaded]:
        """What is loaded. What new jobs are answered by is as good as planned, if its successor does not load, say."""
        offered = versions.offered(self._offers)
        return [
            Loaded(
                key,
                "preloaded" if entry.residence == "passing" and key in offered else entry.residence,
                entry.size_bytes,
                entry.used_at,
                entry.lent > 0,
            )
            for key, entry in self._entries.items()
            if entry.state == "ready"
        ]

    def _tell(self, key: str, state: State) -> None:
        with self._lock:
            self._entries[key].state = state

    def _count(self, state: State) -> int:
        return list(self.progress().values()).count(state)

    def _change(self) -> None:
        entries = [entry for entry in self._entries.values() if entry.state != "failed"]
        usable = {entry.key for entry in entries if entry.usable}
        answered = {key.partition("@")[0] for key in usable.difference(versions.keys_of(self._settings.shadow))}
        # For its first version a model's jobs wait, as for a lazy one. One that had its chance is left to others.
        new = [e.key for e in entries if e.residence == "preloaded" and not e.problem]
        usable.update(key for key in new if key.partition("@")[0] not in answered)
        self._offers = versions.offers(usable, self._planned, self._settings.canary, self._settings.shadow)
        self.changed()
