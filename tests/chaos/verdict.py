"""The verdict: every accepted image has exactly one record, wherever one looks, and nothing is left over."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from classifleet.config import KEY_TABLE
from classifleet.producer import Fleet, Result
from tests.chaos.load import Accepted
from tests.chaos.observer import QUEUES, Observer
from tests.support import wait_until

FINISH_SECONDS: Final = 180.0
CLEAN_SECONDS: Final = 30.0
# kombu's, beside those of the table: docs/redis-keys.md names them.
_STOCK_KEYS: Final = (r"_kombu\.binding\..+",)
_EMPTY_KEYS: Final = ("open", "finalise")
_GONE: Final = ("chunk:", "pending:", "blob:")

Expected = Mapping[str, str]
"""Image id to the error code that it must have; every other image must be ok."""


@dataclass(slots=True)
class Verdict:
    """What was found. `problems` is empty when all is well."""

    images: int = 0
    lost: int = 0
    doubled: int = 0
    problems: list[str] = field(default_factory=list)

    def check(self, good: bool, problem: str) -> None:
        """Note a problem."""
        if not good:
            self.problems.append(problem)


def audit(
    accepted: Sequence[Accepted],
    fleet: Fleet,
    observer: Observer,
    broker: Any,
    s3: Any,
    *,
    expected: Expected | None = None,
    seconds: float = FINISH_SECONDS,
) -> Verdict:
    """Wait for the end of all jobs, then look at everything."""
    verdict = Verdict(images=sum(len(each.ids) for each in accepted))
    try:
        wait_until(lambda: not any(map(observer.chunks, ("queued", "leased", "parked"))), "an empty ledger", seconds)
    except AssertionError as error:
        verdict.problems.append(str(error))
    for each in accepted:
        _audit_job(verdict, each, fleet, s3, expected or {})
    _audit_rest(verdict, accepted, observer, broker)
    return verdict


def _audit_job(verdict: Verdict, each: Accepted, fleet: Fleet, s3: Any, expected: Expected) -> None:
    job = fleet.job(each.job)
    try:
        wait_until(lambda: job.progress().finished, f"{each.job} to finish", CLEAN_SECONDS)
    except AssertionError as error:
        verdict.problems.append(str(error))
    results = list(job.results(follow=False))
    _count(verdict, f"results of {each.job}", each.ids, [result.id for result in results])
    _check_outcomes(verdict, results, expected)
    progress = job.progress()
    counted = (progress.accepted, progress.done, progress.ok, progress.partial, progress.failed)
    states = Counter("ok" if result.ok else "failed" for result in results)
    total = len(each.ids)
    verdict.check(counted == (total, total, states["ok"], 0, states["failed"]), f"{each.job} counts {counted}")
    codes = Counter(result.error.code.value for result in results if result.error is not None)
    verdict.check(progress.by_code == dict(codes), f"{each.job} counts {progress.by_code}, records say {codes}")
    if each.sink is not None:
        _audit_manifest(verdict, each, s3)


def _count(verdict: Verdict, where: str, wanted: Sequence[str], seen: Sequence[str]) -> None:
    counts = Counter(seen)
    lost = [each for each in wanted if not counts[each]]
    doubled = [each for each, count in counts.items() if count > 1]
    strange = set(counts) - set(wanted)
    verdict.lost += len(lost)
    verdict.doubled += len(doubled)
    for what, ids in (("lost", lost), ("doubled", doubled), ("strange", sorted(strange))):
        verdict.check(not ids, f"{where}: {len(ids)} {what}: {', '.join(ids[:3])}")


def _check_outcomes(verdict: Verdict, results: Sequence[Result], expected: Expected) -> None:
    for result in results:
        code = "" if result.error is None else result.error.code.value
        wanted = expected.get(result.id, "")
        verdict.check(code == wanted, f"{result.id} is {code or 'ok'}, not {wanted or 'ok'}: {result.error}")


def _audit_manifest(verdict: Verdict, each: Accepted, s3: Any) -> None:
    """Its parts hold each image once, its figures are theirs, and no other part lies beside them."""
    bucket, _, prefix = str(each.sink).removeprefix("s3://").partition("/")
    folder = f"{prefix}/{each.job}/"

    def read(name: str) -> bytes:
        body: bytes = s3.get_object(Bucket=bucket, Key=folder + name)["Body"].read()
        return body

    manifest = json.loads(read("manifest.json"))
    records = [json.loads(line) for part in manifest["parts"] for line in read(part["name"]).splitlines()]
    _count(verdict, f"manifest of {each.job}", each.ids, [record["id"] for record in records])
    told = sum(part["images"] for part in manifest["parts"])
    verdict.check(told == len(records) == manifest["images"]["accepted"], f"manifest of {each.job} counts {told}")
    lies = {item["Key"] for item in s3.list_objects_v2(Bucket=bucket, Prefix=folder + "parts/").get("Contents", ())}
    orphans = lies - {folder + part["name"] for part in manifest["parts"]}
    verdict.check(not orphans, f"orphaned parts: {sorted(orphans)[:3]}")


def _audit_rest(verdict: Verdict, accepted: Sequence[Accepted], observer: Observer, broker: Any) -> None:
    done = sum(len(each.ids) for each in accepted)
    conditions = _leftovers(observer, done) | {"an empty broker": lambda: not _messages(observer, broker)}
    for description, condition in conditions.items():
        try:
            wait_until(condition, description, CLEAN_SECONDS)
        except AssertionError as error:
            verdict.problems.append(str(error))
    for client in (observer.client, broker):
        unknown = undocumented(client, observer.keys.prefix)
        verdict.check(not unknown, f"keys outside the table: {sorted(unknown)[:5]}")


def _leftovers(observer: Observer, done: int) -> dict[str, Callable[[], bool]]:
    client, keys = observer.client, observer.keys
    conditions: dict[str, Callable[[], bool]] = {
        f"no image {state}": lambda state=state: observer.count(state) == 0 for state in ("queued", "leased", "parked")
    }
    conditions |= {f"no chunk {state}": lambda state=state: observer.chunks(state) == 0 for state in ("leased",)}
    conditions |= {f"`{name}` empty": lambda name=name: not client.zcard(keys.shared(name)) for name in _EMPTY_KEYS}
    conditions |= {
        f"`{name}` 0": lambda name=name: int(client.get(keys.shared(name)) or 0) == 0
        for name in ("room", "blob_bytes")
    }
    conditions["empty rings"] = lambda: not any(client.zcard(keys.queue(queue, "ring")) for queue in QUEUES)
    conditions[f"{done} images counted as done"] = lambda: observer.count("done") == done
    conditions["no chunk, pending or blob key"] = lambda: not [name for name in names(observer) if _is_gone(name)]
    return conditions


def _messages(observer: Observer, broker: Any) -> int:
    """Messages that wait, and those that somebody holds."""
    prefix = observer.keys.broker
    lists = [prefix + queue + end for queue in QUEUES for end in ("", ":woken")]
    held = broker.hlen(prefix + "reserved") + broker.zcard(prefix + "deadlines")
    return int(held + sum(map(broker.llen, lists)))


def _is_gone(name: str) -> bool:
    return name.startswith(_GONE)


def names(observer: Observer) -> list[str]:
    """Keys of the namespace, without their prefix."""
    prefix = observer.keys.prefix
    return [key.removeprefix(prefix) for key in observer.client.scan_iter(count=1000) if key.startswith(prefix)]


def undocumented(client: Any, prefix: str) -> set[str]:
    """Keys of a whole database that no row of the table describes."""
    rows = [re.sub(r"<\w+>", "[^:]+", re.escape(row.pattern)) for row in KEY_TABLE]
    documented = re.compile("|".join([re.escape(prefix) + row for row in rows] + list(_STOCK_KEYS)))
    return {key for key in client.scan_iter(count=1000) if not documented.fullmatch(key)}
