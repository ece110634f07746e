"""How the cores are shared between decoding and the forward pass."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from PIL import Image

from classifleet.worker.models import ModelDescription
from tests.models_support import description_fields, encode

pytest.importorskip("torch")
from classifleet.worker.models import _split
from classifleet.worker.models._split import best, forward_threads, predicted, promising
from classifleet.worker.models.tuning import Split

DESCRIPTION = ModelDescription.from_fields(description_fields(), where="test")


@pytest.mark.parametrize(("cores", "tried"), [(1, [1]), (2, [2, 1]), (3, [3, 2, 1]), (4, [4, 2, 1]), (16, [16, 8, 1])])
def test_the_threads_that_are_tried_for_a_forward_pass(cores, tried):
    assert forward_threads(cores) == tried


@pytest.mark.parametrize(
    ("decoders", "threads", "rate", "limit"),
    [
        (1, 4, 100, "decoding"),
        (4, 1, 60, "the model"),
        (4, 4, 4 / (1 / 100 + 4 / 200), "the cores"),  # 0.01 + 0.02 core seconds an image
        (2, 4, 4 / (1 / 100 + 4 / 200), "the cores"),
        (3, 1, 60, "the model"),
    ],
)
def test_a_pipeline_is_as_fast_as_what_limits_it(decoders, threads, rate, limit):
    found = predicted(decoders, threads, cores=4, decode_rate=100, forward_rates={1: 60, 4: 200})
    assert found == pytest.approx(rate), limit


@pytest.mark.parametrize(
    ("decode_rate", "rates", "first"),
    [
        (1000, {2: 100, 1: 50}, (1, 2)),  # the model is all of the work, and scales
        (1000, {2: 60, 1: 59}, (1, 1)),  # it does not scale: the other core decodes
        (50, {2: 1000, 1: 600}, (2, 1)),  # decoding is all of the work
    ],
)
def test_the_most_promising_split_of_two_cores(decode_rate, rates, first):
    found = promising(2, decode_rate, rates)
    assert found[0] == first
    assert (2, 2) in found, "all cores for each is always measured"
    assert len(found) <= _split.MEASURED


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({}, None),
        ({(2, 2): 100.0}, (2, 2)),
        ({(2, 2): 100.0, (2, 1): 102.0}, (2, 2)),  # about as fast: a lonely image is quicker on two
        ({(2, 2): 100.0, (2, 1): 120.0}, (2, 1)),
        ({(2, 2): 100.0, (1, 2): 107.0}, (2, 2)),  # about as fast: larger photos need threads that decode
        ({(2, 2): 100.0, (1, 2): 60.0}, (2, 2)),
    ],
)
def test_the_fastest_is_chosen_and_a_lonely_image_decides_between_equals(rates, chosen):
    found = best(Split(*key, 4, rate) for key, rate in rates.items())
    assert (found and (found.decode_threads, found.forward_threads)) == chosen


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({4: 100.0}, 4),
        ({4: 75.0, 8: 90.0, 16: 94.0, 32: 85.0}, 16),
        ({4: 100.0, 8: 101.0, 16: 99.0}, 4),  # as fast: the smallest makes nobody wait
        ({1: 99.0, 2: 99.0, 4: 100.0}, 2),  # one by one, each batch costs too much of a worker
    ],
)
def test_batches_grow_where_that_is_faster_beside_decoding(rates, chosen):
    others = [Split(1, 2, min(rates), 95.0 * min(rates.values()) / 100), Split(2, 1, min(rates), 1.0)]
    found = best([*others, *(Split(2, 2, batch, rate) for batch, rate in rates.items())])
    assert found == Split(2, 2, chosen, rates[chosen])


class Counting:
    """A model whose forward pass takes no time, and which knows on which threads it was run."""

    name = "counting"

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.ran_on: set[int] = set()
        self.closed = False

    def run(self, batch):
        self.ran_on.add(threading.get_ident())
        return np.ones((len(batch), 2), np.float32)

    def warm(self, batch_sizes):
        pass

    def close(self):
        self.closed = True


def test_real_pipelines_run_and_end(monkeypatch):
    monkeypatch.setattr(_split, "RUN_SECONDS", 0.05)
    monkeypatch.setattr(_split, "START_SECONDS", 0.01)
    opened: list[Counting] = []

    def open_with(*, threads: int) -> Counting:
        opened.append(Counting(threads))
        return opened[-1]

    before = threading.active_count()
    work = _split.Work([encode(Image.new("RGB", (64, 48), "teal"), "JPEG")], DESCRIPTION, (4, 8))
    found = _split.measure_splits(work, open_with, 2, seconds=60)
    assert {(split.decode_threads, split.forward_threads) for split in found if split.batch == 4} >= {(2, 2)}
    [larger] = [split for split in found if split.batch == 8]
    first = best(split for split in found if split.batch == 4)
    assert (larger.decode_threads, larger.forward_threads) == (first.decode_threads, first.forward_threads)
    assert all(split.rate > 0 for split in found)
    assert [backend.threads for backend in opened] == [2, 1]
    assert all(backend.closed and backend.ran_on == {threading.get_ident()} for backend in opened)
    assert threading.active_count() == before
    assert not _split.measure_splits(work, open_with, 1, seconds=60), "one core is not shared"


@pytest.mark.parametrize(("seconds", "opened"), [(-5.0, 0), (0.0, 0), (1.0, 1), (60.0, 3)])
def test_what_is_opened_ends_with_the_time(seconds, opened, monkeypatch):
    """Each opening takes two seconds; the pipelines are not what is tested."""
    monkeypatch.setattr(_split, "_pipeline_rate", lambda *_: 100.0)
    now, all_opened = [0.0], []

    def open_with(*, threads: int) -> Counting:
        now[0] += 2.0
        all_opened.append(Counting(threads))
        return all_opened[-1]

    work = _split.Work([encode(Image.new("RGB", (64, 48), "teal"), "JPEG")], DESCRIPTION, (4,))
    found = _split.measure_splits(work, open_with, 4, seconds=seconds, clock=lambda: now[0])
    assert len(all_opened) == opened
    assert all(backend.closed for backend in all_opened)
    assert bool(found) is (opened == 3)
