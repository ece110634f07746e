"""The worker in memory: begins chunks, makes records of what the test says the answers are, commits."""

from __future__ import annotations

import json
from collections.abc import Container

from classifleet.config import ErrorCode, ImageError, Record
from classifleet.producer.testing._answers import Answers, failed_record, make_record
from classifleet.producer.testing._memory import Memory
from classifleet.producer.testing._state import MemoryChunk, MemoryJob, now_ms


class MemoryWorker:
    """Works when it is told to, in the thread that tells it."""

    def __init__(self, memory: Memory, answers: Answers, multi_label: Container[str]) -> None:
        self.answers = answers
        self._memory = memory
        self._multi_label = multi_label

    def run(self, max_chunks: int | None = None) -> int:
        """Work on queued chunks; how many images got their record."""
        images = 0
        while max_chunks is None or max_chunks > 0:
            with self._memory.lock:
                taken = self._memory.begin()
            if taken is None:
                break
            images += self._work(*taken)
            max_chunks = None if max_chunks is None else max_chunks - 1
        return images

    def answer_cancelled(self) -> None:
        """Give every queued image of the cancelled jobs its record."""
        with self._memory.lock:
            while self._memory.cancelled:
                job_id = self._memory.cancelled.pop()
                while taken := self._memory.begin(job_id):
                    self._fail(*taken, ImageError(ErrorCode.CANCELLED))

    def _work(self, job: MemoryJob, chunk: MemoryChunk) -> int:
        if chunk.deadline_at is not None and now_ms() >= chunk.deadline_at:
            late = ImageError(ErrorCode.DEADLINE_EXCEEDED, "the deadline passed while the image was queued")
            return self._fail(job, chunk, late)
        try:
            records = [make_record(image, self.answers, self._multi_label) for image in chunk.images]
        except BaseException:  # a defect of the test's own function is the test's to see
            with self._memory.lock:
                self._memory.hand_back(job, chunk)
            raise
        return self._commit(job, chunk, records)

    def _fail(self, job: MemoryJob, chunk: MemoryChunk, error: ImageError) -> int:
        return self._commit(job, chunk, [failed_record(image, error) for image in chunk.images])

    def _commit(self, job: MemoryJob, chunk: MemoryChunk, records: list[Record]) -> int:
        encoded = {record["id"]: json.dumps(record, ensure_ascii=False).encode() for record in records}
        outcomes = [record["error"]["code"] if "error" in record else record["status"] for record in records]
        with self._memory.lock:
            self._memory.commit(job, chunk, encoded, outcomes)
        return len(records)
