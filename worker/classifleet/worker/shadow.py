"""A version that is compared, on a share of the images, after the one that answers: its answers are nobody's.

answer of imagenet@1 ─► (so many percent) ─► spare time of the device ─► imagenet@2 ─► agree | disagree | failed
                                                  there is none ─► dropped
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import numpy as np
import structlog

from classifleet.config import ImageError
from classifleet.config.setting_sources import PERCENT, Shares
from classifleet.worker.device import Device
from classifleet.worker.instruments import SHADOW, SHADOW_DIFFERENCE
from classifleet.worker.models import ModelDescription
from classifleet.worker.queues import Pixels, Scores

WAIT_SECONDS: Final = 5.0
"""For so long an image waits for spare time of the device."""
log = structlog.get_logger(__name__)


class Shadow:
    """Compares versions. Lives on one event loop.

    Args:
        shares: By model the version, and its percentage of the images.
        ready: The models that can be asked, by name with version; may change.
        device: Runs them.
        wish: Told the shadow (with version) that an image is to be compared on: it is to stay, or to come.
        chance: A number from 0 to 1.
    """

    def __init__(
        self,
        shares: Mapping[str, Shares],
        ready: Mapping[str, ModelDescription],
        device: Device,
        *,
        wish: Callable[[str], None] = lambda shadow: None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._versions = {
            name: (f"{name}@{version}", percent / PERCENT)
            for name, versions in shares.items()
            for version, percent in versions.items()
        }
        self._ready = ready
        self._device = device
        self._wish = wish
        self._chance = chance
        self._tasks: set[asyncio.Task[None]] = set()
        self._pauses = 0
        self._unfit: set[tuple[str, str]] = set()

    def offer(self, key: str, pixels: Mapping[str, Pixels], scores: Scores) -> None:
        """Perhaps compare the shadow of a model (with version), on an image that it has answered.

        Args:
            key: The model that answered.
            pixels: The image, by digest of the preprocessing.
            scores: The answer.
        """
        shadow, share = self._versions.get(key.partition("@")[0], ("", 0.0))
        if self._pauses or shadow in ("", key) or self._chance() >= share:
            return
        self._wish(shadow)
        model = self._ready.get(shadow)
        seen = None if model is None else pixels.get(model.preprocess.digest)
        if model is None or seen is None:
            self._refuse(shadow, key, "not loaded" if model is None else "preprocesses images in another way")
            return
        task = asyncio.create_task(self._compare(shadow, seen, _by_label(self._ready[key], scores)))
        self._tasks.add(task)  # the loop holds tasks by weak references alone
        task.add_done_callback(self._tasks.discard)

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Nothing is compared while the block runs; what is at work is waited for."""
        self._pauses += 1
        try:
            while self._tasks:
                await asyncio.wait(self._tasks)
            yield
        finally:
            self._pauses -= 1

    async def _compare(self, shadow: str, pixels: Pixels, answered: Mapping[str, float]) -> None:
        try:
            inference = await self._device.compare(shadow, pixels, time.monotonic() + WAIT_SECONDS)
        except ImageError as error:
            log.debug("shadow failed", model=shadow, error=str(error))
            SHADOW.labels(shadow, "failed").inc()
            return
        model = self._ready.get(shadow)
        if inference is None or model is None:
            SHADOW.labels(shadow, "dropped").inc()
            return
        agrees, difference = compared(answered, _by_label(model, inference.scores))
        SHADOW.labels(shadow, "agree" if agrees else "disagree").inc()
        SHADOW_DIFFERENCE.labels(shadow).observe(difference)

    def _refuse(self, shadow: str, key: str, why: str) -> None:
        SHADOW.labels(shadow, "failed").inc()
        if (shadow, why) not in self._unfit:  # once, not for each image
            self._unfit.add((shadow, why))
            log.warning("shadow cannot be compared", model=shadow, with_model=key, because=why)


def compared(one: Mapping[str, float], other: Mapping[str, float]) -> tuple[bool, float]:
    """Whether the first classes are the same, and the largest difference of a class' confidence.

    A class that only one of them knows counts as 0 for the other.
    """
    same = max(one, key=one.__getitem__) == max(other, key=other.__getitem__)
    return same, max(abs(one.get(label, 0.0) - other.get(label, 0.0)) for label in one.keys() | other.keys())


def _by_label(model: ModelDescription, scores: Scores) -> dict[str, float]:
    return dict(zip(model.labels, np.asarray(scores, float).tolist(), strict=True))
