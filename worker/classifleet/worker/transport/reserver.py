"""Takes messages from Redis for one channel, and settles them.

One connection carries the turns (`turn.lua`): what was acknowledged goes out with the next reservation. Beside it one
connection for each queue blocks while that queue is empty and its lane has room, on a move of the next message to a
list beside the queue, from which the next turn of any worker takes it back: nothing is lost, whoever dies when, one
message wakes one worker, and any producer that pushes to a list will do.

All of it runs on the loop's thread, but `ack`, `park`, `hand_back` and `stop`, which any thread may call.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import redis
import structlog

from classifleet.config import Lane
from classifleet.config.brokers import woken
from classifleet.worker.instruments import CHUNKS
from classifleet.worker.lanes import LANES
from classifleet.worker.transport.line import Line, Watcher
from classifleet.worker.transport.slots import free_slots, lane_of
from classifleet.worker.transport.turns import SHA1, SOURCE, Answer, Reserved, Turn, read

BLOCK_SECONDS: Final = 5.0  # also how long a message waits that woke a worker which died at that moment
RESTORED_PER_TURN: Final = 200
REFUSED_PAUSE_SECONDS: Final = 1.0  # after Redis refused to block, as it does when it is full
_LONGEST_SWEEP_SECONDS: Final = 10.0
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """`prefix` of all keys; `visibility_seconds` after which a silent worker's messages are given to others."""

    prefix: str
    visibility_seconds: float
    reply_seconds: float

    @property
    def keep_seconds(self) -> float:
        """How often this worker says that it still holds its messages."""
        return self.visibility_seconds / 4

    @property
    def sweep_seconds(self) -> float:
        """How often it looks for messages of silent workers."""
        return min(self.visibility_seconds / 8, _LONGEST_SWEEP_SECONDS)


class Reserver:
    """Holds the messages of one channel. `deliver` is given each; `slots` is how many may be held at one time."""

    def __init__(
        self,
        pool: redis.ConnectionPool,
        watcher: Watcher,
        options: Options,
        *,
        deliver: Callable[[Reserved], None],
        slots: Callable[[], int],
        waiting: Callable[[Lane], int] = lambda _: 0,
    ) -> None:
        self._pool = pool
        self._watcher = watcher
        self._options = options
        self._deliver = deliver
        self._slots = slots
        self._waiting = waiting
        self._queues: list[str] = []
        self._held: dict[str, str] = {}  # tag to queue
        self._undelivered: deque[Reserved] = deque()
        self._settled: dict[str, deque[str]] = {"acked": deque(), "handed_back": deque(), "parked": deque()}
        self._call = Line(pool, watcher, self._on_turn)
        self._waits: dict[str, Line] = {}
        self._empty: set[str] = set()  # queues that were empty at the last turn
        self._refused_until = 0.0
        self._turn = Turn()
        self._next_keep = self._next_sweep = 0.0
        self._must_turn = False
        self._call_lock = threading.Lock()
        self._take_lock = threading.Lock()
        self._driven = False
        self._stopped = False
        self._lost = self._closed = False
        self._id = uuid.uuid4().hex[:12]
        self._turns = 0

    @property
    def held(self) -> list[str]:
        """Tags of the messages that are held, oldest first."""
        return list(self._held)

    def consume(self, queues: Sequence[str], *, driven: bool) -> None:
        """Reserve from these queues from the next `advance` on; from none if there are none.

        Args:
            queues: Their names.
            driven: Whether an event loop calls `advance` at each tick. Else what is settled goes out at once.
        """
        # A lane's queues take turns in being first; interactive ones come before all others.
        self._queues = sorted(dict.fromkeys(queues), key=lambda queue: lane_of(queue) != "interactive")
        self._driven = driven and bool(self._queues)
        for queue in [queue for queue in self._waits if queue not in self._queues]:
            self._waits.pop(queue).close()
            self._must_turn = True
        if not self._queues:
            self._finish_turn()

    def advance(self) -> None:
        """Send what is to be sent; never waits for a reply.

        Raises:
            redis.RedisError: A connection is lost, or stays silent.
        """
        for line in self._lines():
            line.check()
        if self._stopped:
            self._retreat()
        self._deliver_all()
        limits = self._limits()
        now = time.monotonic()
        if not self._call.busy and self._due(limits, now):
            self._send_turn(limits, now)
        if now >= self._refused_until:
            for queue, limit in limits:
                if limit and queue in self._empty:
                    self._block(queue)

    def ack(self, tag: str) -> None:
        """Remove a message for good. Repeating it, or another holder's having the message by now, does no harm."""
        self._settle("acked", [tag])

    def park(self, tag: str) -> None:
        """Move a message to the list of garbage."""
        CHUNKS.labels("garbage").inc()
        self._settle("parked", [tag])

    def hand_back(self, tags: Sequence[str]) -> int:
        """Put messages back on their queues, in one call; how many of them were held.

        Raises:
            redis.RedisError: Redis is away; the messages come back by their deadlines.
        """
        held = [tag for tag in tags if tag in self._held]
        self._settle("handed_back", held)
        if held:
            self._settle_now()
        return len(held)

    def look(self) -> None:
        """Slots may be free that no message has freed; from any thread."""
        self._watcher.wake()

    def stop(self) -> None:
        """Reserve nothing from now on. It only sets a flag: a signal handler may call it."""
        self._stopped = True

    def close(self) -> None:
        """Hand everything back, unless the connection is lost: then all comes back by its deadline, if not acked.

        Messages that are at work then may still be acknowledged.
        """
        if self._closed:
            return
        self._closed = self._stopped = True
        self._driven = False
        self._lost = self._lost or any(line.lost for line in self._lines())
        try:
            if self._lost:
                self._repeat_settled()
            else:
                self._finish_turn()
                self.hand_back(self.held)
        except redis.RedisError as error:
            log.warning("messages not handed back; they come back by their deadlines", error=str(error))
        for message in self._undelivered:
            self._held.pop(message.tag, None)
        for line in self._lines():
            line.close()
        self._waits.clear()
        if not self._held:
            self._pool.disconnect()

    def _lines(self) -> list[Line]:
        return [self._call, *self._waits.values()]

    def _retreat(self) -> None:
        self._return_undelivered()
        if self._waits:
            for queue in list(self._waits):
                self._waits.pop(queue).close()
            self._must_turn = True  # gives back what woke us meanwhile

    def _return_undelivered(self) -> None:
        undelivered = [message.tag for message in self._undelivered]
        self._undelivered.clear()
        if undelivered:
            self._settle("handed_back", undelivered)

    def _limits(self) -> list[tuple[str, int]]:
        if self._stopped:
            return [(queue, 0) for queue in self._queues]
        free = free_slots(self._slots(), self._held_by_lane())
        return [(queue, free[lane_of(queue)]) for queue in self._queues]

    def _held_by_lane(self) -> dict[Lane, int]:
        """Without the chunks that wait for strangers: they hold no slot."""
        lanes = [lane_of(queue) for queue in list(self._held.values())]
        return {lane: max(lanes.count(lane) - self._waiting(lane), 0) for lane in LANES}

    def _due(self, limits: list[tuple[str, int]], now: float) -> bool:
        return (
            self._must_turn
            or any(self._settled.values())
            or now >= self._next_sweep
            or (bool(self._held) and now >= self._next_keep)
            or any(limit and queue not in self._empty for queue, limit in limits)
        )

    def _send_turn(self, limits: list[tuple[str, int]], now: float) -> None:
        keep, sweep = now >= self._next_keep, now >= self._next_sweep
        if keep:
            self._next_keep = now + self._options.keep_seconds
        if sweep:
            self._next_sweep = now + self._options.sweep_seconds
        self._turns += 1
        self._must_turn = False
        self._turn = Turn(
            nonce=f"{self._id}-{self._turns}-",
            **self._take_settled(),
            kept=self.held if keep else (),
            restore=RESTORED_PER_TURN if sweep else 0,
            free=0 if self._stopped else max(self._slots() - sum(self._held_by_lane().values()), 0),
            limits=self._rotated(limits),
        )
        self._call.send("EVALSHA", SHA1, *self._arguments(self._turn), seconds=self._options.reply_seconds)

    def _rotated(self, limits: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Pools of one lane take turns in being first."""
        first = [each for each in limits if lane_of(each[0]) == "interactive"]
        rest = limits[len(first) :]
        return [each for lane in (first, rest) if lane for each in _rotate(lane, self._turns)]

    def _on_turn(self, reply: Any) -> None:
        if isinstance(reply, redis.exceptions.NoScriptError):  # Redis was restarted, or another one took over
            self._call.send("EVAL", SOURCE, *self._arguments(self._turn), seconds=self._options.reply_seconds)
            return
        if isinstance(reply, redis.ResponseError):
            self._lost = True
            raise redis.ConnectionError(f"Redis refused to serve messages: {reply}") from reply
        answer = self._accept(reply)
        self._empty = {queue for queue, left in answer.left.items() if not left}
        if self._stopped:
            self._settle("handed_back", [each.tag for each in answer.reserved])
            return
        self._undelivered.extend(answer.reserved)
        self._deliver_all()

    def _accept(self, reply: Any) -> Answer:
        answer = read(self._turn, reply)
        for each in answer.reserved:
            self._held[each.tag] = each.queue
        if answer.restored:
            log.warning("messages of silent workers are back on their queues", messages=answer.restored)
            if answer.restored == RESTORED_PER_TURN:
                self._next_sweep = 0.0
        if answer.oversized:
            CHUNKS.labels("garbage").inc(answer.oversized)
        return answer

    def _deliver_all(self) -> None:
        while self._undelivered:
            message = self._undelivered.popleft()
            if message.tag in self._held:
                self._deliver(message)

    def _block(self, queue: str) -> None:
        line = self._waits.get(queue)
        if line is None:
            line = self._waits[queue] = Line(self._pool, self._watcher, partial(self._on_woken, queue))
        if not line.busy:
            key = self._options.prefix + queue
            seconds = BLOCK_SECONDS + self._options.reply_seconds
            line.send("BLMOVE", key, woken(key), "RIGHT", "LEFT", BLOCK_SECONDS, seconds=seconds)

    def _on_woken(self, queue: str, reply: Any) -> None:
        if isinstance(reply, redis.ResponseError):
            log.warning("Redis refuses to block", queue=queue, error=str(reply))
            self._refused_until = time.monotonic() + REFUSED_PAUSE_SECONDS
        # Also when nothing came: another worker may have been woken and died.
        self._empty.discard(queue)
        self._must_turn = True

    def _settle(self, how: str, tags: Sequence[str]) -> None:
        for tag in tags:
            if self._held.pop(tag, None) is not None:
                self._settled[how].append(tag)
        if self._driven:
            self._watcher.wake()
        else:
            self._settle_now()

    def _repeat_settled(self) -> None:
        """Settle again what went out with the turn whose reply was lost; it may have arrived or not."""
        for how, tags in self._settled.items():
            tags.extend(getattr(self._turn, how))
        self._settle_now()

    def _take_settled(self) -> dict[str, Any]:
        with self._take_lock:
            return {how: [tags.popleft() for _ in range(len(tags))] for how, tags in self._settled.items()}

    def _settle_now(self) -> None:
        with self._call_lock:
            settled = self._take_settled()
            if any(settled.values()):
                self._execute(Turn(**settled))
            if self._closed and not self._held:
                self._pool.disconnect()

    def _execute(self, turn: Turn) -> Any:
        client: Any = redis.Redis(connection_pool=self._pool)
        arguments = self._arguments(turn)
        try:
            return client.execute_command("EVALSHA", SHA1, *arguments)
        except redis.exceptions.NoScriptError:
            return client.execute_command("EVAL", SOURCE, *arguments)

    def _finish_turn(self) -> None:
        """Wait for the turn that is under way, and hand back what it brings."""
        self._return_undelivered()
        if self._call.busy:
            reply = self._call.read()
            if not isinstance(reply, redis.ResponseError):
                brought = [each.tag for each in self._accept(reply).reserved]
                self._settle("handed_back", brought)
        self._settle_now()

    def _arguments(self, turn: Turn) -> list[str | int]:
        return turn.arguments(self._options.prefix, int(self._options.visibility_seconds * 1000))


def _rotate(items: list[Any], turns: int) -> list[Any]:
    cut = turns % len(items)
    return items[cut:] + items[:cut]
