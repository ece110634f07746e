"""What can be done with dead letters, as flows (see `_effects`).

dead letters, newest first ─► those that match ─┬─► requeue: a new job for each old one, noted on the letters
                                                └─► discard: the letter and its parked image go
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Final

from classifleet.config import InvalidRequest, make_payload
from classifleet.config.claims import SCHEME as CLAIM
from classifleet.config.claims import Claims
from classifleet.ledger import Call, Discarded, Ledger
from classifleet.producer._effects import Ask, Blocking, Flow
from classifleet.producer._flows import Flows
from classifleet.producer._letters import UNREADABLE, Body, DeadLetter, Wanted, parse_letter
from classifleet.producer._request import (
    GROUP_BYTES,
    Chunk,
    Request,
    RequestOptions,
    SubmitItem,
    make_chunk,
    make_request,
)

PAGE_LETTERS: Final = 200
GONE: Final = "it has expired or was discarded"
IMAGE_EXPIRED: Final = "the image that was parked for it has expired: submit it anew"
NO_CLAIMS: Final = "its image is in the claim store, which CLASSIFLEET_CLAIM_STORE does not name here"
_BASE_CHARS: Final = 107  # of a new job's id, whose 128 also hold `-requeue-` and 12 hex digits
_REQUEUED: Final = re.compile(r"-requeue-[0-9a-f]{12}$")


@dataclass(frozen=True, slots=True)
class Requeued:
    """What became of letters that were to be tried again.

    Attributes:
        jobs: Images by the new job that they are in now.
        before: Images that were tried again earlier, by the job of that time. They are not sent again.
        skipped: Why a letter could not be tried again, by its key.
    """

    jobs: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _RequeueRequest(Request):
    """A request whose job says where it comes from."""

    requeued_from: str = ""

    def header(self, reply_to: str) -> dict[str, str]:
        return {**Request.header(self, reply_to), "requeued_from": self.requeued_from}


def find(ledger: Ledger, wanted: Wanted, limit: int | None = None) -> Flow[list[DeadLetter]]:
    """The letters that match, newest first, `limit` at most."""
    found: dict[str, DeadLetter] = {}
    offset = 0
    while limit is None or len(found) < limit:
        [keys] = yield Ask([ledger.dead_letters(offset, PAGE_LETTERS)])
        # A letter that comes meanwhile moves all others on by a place, so that some may be seen twice.
        pairs = yield from _read(ledger, [key for key in keys if key not in found])
        found |= {letter.key: letter for letter, _ in pairs if wanted(letter)}
        if len(keys) < PAGE_LETTERS:
            break
        offset += PAGE_LETTERS
    return list(found.values())[:limit]


def named(ledger: Ledger, keys: Sequence[str]) -> Flow[list[DeadLetter]]:
    """Letters by their keys.

    Raises:
        InvalidRequest: One is not there.
    """
    pairs = yield from _read(ledger, keys)
    if missing := set(keys) - {letter.key for letter, _ in pairs}:
        raise InvalidRequest(f"there is no dead letter {min(missing)!r}; it may have expired or been discarded")
    return [letter for letter, _ in pairs]


def count(ledger: Ledger) -> Flow[int]:
    """How many letters there are."""
    [number] = yield Ask([Call("ZCARD", (ledger.keys.shared("dead"),), (), int)])
    return int(number)


def discard(flows: Flows, letters: Iterable[DeadLetter]) -> Flow[int]:
    """Drop letters, with the images that were parked for them; how many were still there."""
    dropped = 0
    for page in _pages([letter.key for letter in letters]):
        bodies = yield from _bodies(flows.ledger, page)
        answers = yield Ask([flows.ledger.discard(key) for key in page])
        for key, answer in zip(page, answers, strict=True):
            dropped += answer is not Discarded.UNKNOWN
            if answer is Discarded.DROPPED_LAST and (body := bodies.get(key)) and body.item.ref.startswith(CLAIM):
                payload = make_payload(job=body.job, chunk=body.chunk, items=[body.item], models=body.models)
                yield Blocking(partial(flows.claims.delete, payload))
    return dropped


def requeue(flows: Flows, letters: Iterable[DeadLetter], wait_seconds: float | None = 0.0) -> Flow[Requeued]:
    """Submit the images again, those of one old job as one new job; its id follows from the letters.

    The notes on the letters come last: a requeue that was interrupted is the same job when it is repeated.

    Raises:
        QueueFull: For `wait_seconds` (None: without end) there was no room.
    """
    outcome = Requeued()
    by_job: defaultdict[str, list[str]] = defaultdict(list)
    for page in _pages(list(dict.fromkeys(letter.key for letter in letters))):
        for letter in (yield from _sort_out(flows.ledger, page, outcome)):
            by_job[letter.job].append(letter.key)
    for job, keys in by_job.items():
        yield from _NewJob(flows, new_job_id(job, keys), outcome, wait_seconds).submit(sorted(keys))
    return outcome


def _sort_out(ledger: Ledger, keys: Sequence[str], outcome: Requeued) -> Flow[list[DeadLetter]]:
    """Those that can be tried again; of the others the outcome says why not."""
    pairs = yield from _read(ledger, keys)
    outcome.skipped.update(dict.fromkeys(set(keys) - {letter.key for letter, _ in pairs}, GONE))
    ready = []
    for letter, _ in pairs:
        if letter.requeued_as is not None:
            outcome.before[letter.requeued_as] += 1
        elif not letter.readable:
            outcome.skipped[letter.key] = UNREADABLE
        else:
            ready.append(letter)
    return ready


@dataclass(slots=True)
class _NewJob:
    """The job in which letters of one job are tried again.

    `items` are those of the next chunk, by image id: an id is an image's name within its chunk alone.
    """

    flows: Flows
    id: str
    outcome: Requeued
    wait_seconds: float | None
    request: Request | None = None
    chunks: int = 0
    items: dict[str, SubmitItem] = field(default_factory=dict)
    weight: int = 0  # bytes of their references and images
    sent: list[str] = field(default_factory=list)

    def submit(self, keys: Sequence[str]) -> Flow[None]:
        """Submit the letters' images, and note it on the letters."""
        for page in _pages(keys):
            bodies = yield from _bodies(self.flows.ledger, page)
            for key, body in bodies.items():
                yield from self._add(key, body)
        if self.request is None:
            return
        yield from self._flush(self.request)
        yield from self.flows.seal(self.request, self.chunks, self.wait_seconds)
        for page in _pages(self.sent):
            yield Ask([self.flows.ledger.note_requeued(key, self.id) for key in page])
        self.outcome.jobs[self.id] += len(self.sent)

    def _add(self, key: str, body: Body) -> Flow[None]:
        image = yield from self._image(key, body)
        if image is None:
            return
        self.request = self.request or _request(self.flows, body, self.id)
        full = len(self.items) >= self.flows.settings.chunk_size or self.weight >= GROUP_BYTES
        if full or body.item.id in self.items:
            yield from self._flush(self.request)
        self.items[body.item.id] = (body.item.id, image, body.item.meta)
        self.weight += len(image)
        self.sent.append(key)

    def _flush(self, request: Request) -> Flow[None]:
        numbered = list(enumerate(self.items.values()))
        self.items, self.weight = {}, 0
        chunk: Chunk = yield Blocking(partial(make_chunk, request, self.chunks, numbered, self.flows.settings))
        if not (yield from self.flows.submit_chunks(request, [chunk], self.wait_seconds)):
            raise InvalidRequest(f"job {self.id} was cancelled while the letters were being requeued")
        self.chunks += 1

    def _image(self, key: str, body: Body) -> Flow[str | bytes | None]:
        """The reference to submit; of a parked image the bytes, if they are still there."""
        scheme, _, sha256 = body.item.ref.partition(":")
        image: str | bytes | None = body.item.ref
        if scheme == "blob":
            [image] = yield Ask([self.flows.ledger.get_blob(body.job, body.chunk, sha256)])
        elif scheme == "claim":
            if not self.flows.claims.enabled:
                self.outcome.skipped[key] = NO_CLAIMS
                return None
            image = yield Blocking(partial(_claimed, self.flows.claims, body.job, body.chunk, sha256))
        if image is None:
            self.outcome.skipped[key] = IMAGE_EXPIRED
        return image


def _claimed(claims: Claims, job: str, chunk: str, sha256: str) -> bytes | None:
    try:
        return claims.get(job, chunk, sha256)
    except FileNotFoundError:
        return None  # told by the caller


def _request(flows: Flows, body: Body, job: str) -> Request:
    given = RequestOptions(
        top_k=body.options.top_k,
        scores=body.options.scores,
        threshold=body.options.threshold,
        deadline=body.deadline_seconds,
    )
    made = make_request(flows.settings, job=job, models=body.models, options=given, lane=body.lane, sink=body.sink)
    return _RequeueRequest(**{one.name: getattr(made, one.name) for one in fields(made)}, requeued_from=body.job)


def new_job_id(job: str, keys: Iterable[str]) -> str:
    """The id of the job in which letters of a job are tried again: the same for the same letters."""
    digest = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:12]
    return f"{_REQUEUED.sub('', job)[:_BASE_CHARS]}-requeue-{digest}"


def _read(ledger: Ledger, keys: Sequence[str]) -> Flow[list[tuple[DeadLetter, Body | None]]]:
    found: list[tuple[DeadLetter, Body | None]] = []
    for page in _pages(keys):
        hashes = yield Ask([ledger.dead_letter(key) for key in page])
        found += [parse_letter(key, values) for key, values in zip(page, hashes, strict=True) if "letter" in values]
    return found


def _bodies(ledger: Ledger, keys: Sequence[str]) -> Flow[dict[str, Body]]:
    pairs = yield from _read(ledger, keys)
    return {letter.key: body for letter, body in pairs if body is not None}


def _pages(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), PAGE_LETTERS):
        yield keys[start : start + PAGE_LETTERS]
