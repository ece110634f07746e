"""What a worker tells of itself, from its metrics."""

from classifleet.worker.figures import Figures
from classifleet.worker.instruments import BATCH_SIZE, IMAGES, MAX_BATCH


def commit(**outcomes):
    for outcome, count in outcomes.items():
        IMAGES.labels("classify.figures.bulk", outcome).inc(count)


def run(model, most, *sizes):
    MAX_BATCH.labels(model).set(most)
    for size in sizes:
        BATCH_SIZE.labels(model).observe(size)


def test_rates_are_since_the_last_word_and_counts_since_the_start():
    figures = Figures()
    before = figures.take()
    assert (before.images_per_second, before.batch_images, before.batch_fill) == (0.0, 0.0, 0.0)
    commit(ok=90, partial=2, undecodable=8)
    run("figures-a", 32, 32, 16)
    run("figures-b", 8, 4)
    first = figures.take()
    assert first.images - before.images == 100
    assert first.images_per_second > 0
    assert (first.batch_images, first.batch_fill) == (17.33, round(52 / 72, 3))
    failed = {code: count - before.failed.get(code, 0) for code, count in first.failed.items()}
    assert {code: count for code, count in failed.items() if count} == {"partial": 2, "undecodable": 8}
    second = figures.take()
    assert (second.images, second.failed) == (first.images, first.failed)
    assert (second.images_per_second, second.batch_images, second.batch_fill) == (0.0, 0.0, 0.0)


def test_a_batch_that_was_halved_meanwhile_is_not_more_than_full():
    figures = Figures()
    run("figures-c", 32, 32)
    MAX_BATCH.labels("figures-c").set(16)
    assert figures.take().batch_fill == 1.0
