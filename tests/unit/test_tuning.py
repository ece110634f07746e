"""The tuner's decisions, with backends whose speed and answers are made up, on a clock of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from classifleet.config.errors import ModelError
from classifleet.worker.models import ModelDescription
from tests.models_support import description_fields

pytest.importorskip("torch")
from classifleet.worker.models._attempts import Attempts
from classifleet.worker.models.failures import DeviceLost, OutOfMemory
from classifleet.worker.models.golden_inputs import GoldenInputs
from classifleet.worker.models.measuring import QUIET_LOAD, Bounds, Contestant, Speed, busy, duel, measure
from classifleet.worker.models.tuning import Row, Tuning, no_hope, tune
from classifleet.worker.models.variants import BY_NAME, VARIANTS, available

DESCRIPTION = ModelDescription.from_fields(description_fields(), where="test")
PICTURES = 240
CPU = [variant.name for variant in VARIANTS if "cpu" in variant.devices]


@dataclass
class Bench:
    """A machine on which a variant takes what is said here, in seconds per image and per batch."""

    image: dict[str, float] = field(default_factory=dict)
    batch: float = 0.001
    load: float = 0.1
    shift: dict[str, float] = field(default_factory=dict)
    swapped: dict[str, set[int]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    raises: dict[str, Exception] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    compile: float = 0.0
    disturbed: Callable[[float], float] = lambda now: 1.0
    load_average: float = 0.0
    now: float = 0.0
    opened: list[str] = field(default_factory=list)
    closed: int = 0

    def clock(self) -> float:
        return self.now

    def missing(self, variant) -> str:
        return "" if variant.name in CPU else available(variant, "cpu")

    def seconds(self, variant) -> float:
        return self.compile if variant.engine == "inductor" else 0.0

    def open(self, variant, *, seconds=None) -> Fake:
        self.opened.append(variant.name)
        self.now += self.load
        if variant.name in self.broken:
            raise ModelError(f"cannot load {variant.name}")
        return Fake(self, variant.name)


@dataclass
class Fake:
    bench: Bench
    name: str

    def run(self, batch):
        if len(batch) > self.bench.memory.get(self.name, 1000):
            raise OutOfMemory(f"no memory for {len(batch)}")
        if self.name in self.bench.raises:
            raise self.bench.raises[self.name]
        takes = self.bench.batch + len(batch) * self.bench.image.get(self.name, 0.02)
        self.bench.now += takes * self.bench.disturbed(self.bench.now)
        sure = batch[:, 0, 0, 0].astype(np.float32) / 255
        sure = np.clip(sure + self.bench.shift.get(self.name, 0.0), 0, 1)
        scores = np.stack([sure, 1 - sure], axis=1)
        return scores[:, ::-1] if len(batch) in self.bench.swapped.get(self.name, ()) else scores

    def warm(self, batch_sizes):
        for size in batch_sizes:
            self.run(np.zeros((size, 8, 8, 3), np.uint8))

    def close(self):
        self.bench.closed += 1


def inputs(pictures: int = PICTURES, photos: int = 9) -> GoldenInputs:
    pixels = np.random.default_rng(0).integers(0, 256, (pictures, 8, 8, 3), np.uint8)
    return GoldenInputs(pixels, photos, "digest")


def run(
    bench: Bench, *, given: GoldenInputs | None = None, precision="auto", seconds=1000.0, forward=0.5, attempts=None
) -> Tuning:
    tuning = tune(
        DESCRIPTION,
        bench,
        given or inputs(),
        precision=precision,
        bounds=Bounds(seconds, forward, (1, 2, 4, 8, 16)),
        clock=bench.clock,
        load=lambda: bench.load_average,
        attempts=attempts,
    )
    assert bench.closed == len(bench.opened) - len(bench.broken), "every backend is closed again"
    assert [row.status for row in tuning.rows].count("chosen") == 1
    return tuning


def status(tuning: Tuning) -> dict[str, str]:
    return {row.variant: row.status for row in tuning.rows}


def test_the_fastest_with_the_same_answers_is_chosen():
    bench = Bench(image={"torchscript/bf16": 0.002, "torchscript/channels_last": 0.005})
    tuning = run(bench)
    assert tuning.chosen.variant == "torchscript/bf16"
    assert tuning.speedup == pytest.approx(0.02 / 0.002, rel=0.2)
    assert status(tuning)["torchscript"] == "slower"
    assert status(tuning)["torchscript/channels_last"] in ("slower", "chosen")


def test_a_fast_liar_is_refused_and_the_next_one_serves():
    bench = Bench(
        image={"torchscript/bf16": 0.001, "torchscript/channels_last": 0.005}, shift={"torchscript/bf16": 0.3}
    )
    tuning = run(bench)
    assert tuning.chosen.variant == "torchscript/channels_last"
    liar = next(row for row in tuning.rows if row.variant == "torchscript/bf16")
    assert liar.status == "refused"
    assert "of a class is" in liar.reason
    assert liar.speed is not None
    assert liar.speed.rate > (tuning.chosen.speed or tuning.plain).rate


@pytest.mark.parametrize("sizes", [{1}, {2, 3}, {15}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}])
def test_who_lies_in_batches_that_are_not_full_is_refused(sizes):
    bench = Bench(image={"torchscript/bf16": 0.001}, swapped={"torchscript/bf16": sizes})
    tuning = run(bench)
    assert status(tuning)["torchscript/bf16"] == "refused"
    liar = next(row for row in tuning.rows if row.variant == "torchscript/bf16")
    assert liar.speed is not None
    assert liar.speed.batch == 16


def test_a_slight_liar_is_refused():
    bench = Bench(image={"torchscript/frozen": 0.001}, shift={"torchscript/frozen": 0.001})
    tuning = run(bench, precision="fp32")
    assert status(tuning)["torchscript/frozen"] == "refused"
    assert tuning.chosen.precision == "fp32"
    for shift, said in ((0.03, "refused"), (0.003, "chosen")):
        bench = Bench(image={"torchscript/bf16": 0.001}, shift={"torchscript/bf16": shift})
        assert status(run(bench))["torchscript/bf16"] == said


def test_fp32_tries_nothing_else():
    tuning = run(Bench(image={"torchscript/bf16": 0.0001}), precision="fp32")
    assert {row.precision for row in tuning.rows} == {"fp32"}


def test_a_precision_that_is_asked_for_goes_before_a_faster_one():
    bench = Bench(image={"torchscript/bf16": 0.01, "torchscript/channels_last": 0.001})
    assert run(bench, precision="bf16").chosen.variant == "torchscript/bf16"
    lying = Bench(
        image={"torchscript/channels_last": 0.001},
        shift={name: 0.3 for name in CPU if name.endswith("bf16")},
    )
    assert run(lying, precision="bf16").chosen.variant == "torchscript/channels_last"


@pytest.mark.parametrize("given", [inputs(photos=1), inputs(photos=4), inputs(pictures=0, photos=0)])
def test_without_photos_nothing_proves_reduced_precision(given):
    bench = Bench(image={"torchscript/bf16": 0.0001, "torchscript/channels_last": 0.005})
    tuning = run(bench, given=given)
    assert tuning.chosen.variant == "torchscript/channels_last"
    assert tuning.photos == given.photos
    assert "photos cannot prove" in next(row.reason for row in tuning.rows if row.variant == "torchscript/bf16")


def test_what_does_not_load_is_a_row_and_no_failure():
    bench = Bench(broken={"torchscript/optimized", "torchscript/bf16"})
    tuning = run(bench)
    assert status(tuning)["torchscript/optimized"] == "failed"
    assert "cannot load" in next(row.reason for row in tuning.rows if row.variant == "torchscript/bf16")


@pytest.mark.parametrize("error", [KeyError("dtype"), MemoryError(), RuntimeError("several\nlines"), ModelError("no")])
def test_whatever_a_variant_raises_is_its_own_failure(error):
    bench = Bench(image={"torchscript/frozen": 0.002}, raises={"torchscript/bf16": error})
    tuning = run(bench)
    assert tuning.chosen.variant == "torchscript/frozen"
    [row] = [row for row in tuning.rows if row.variant == "torchscript/bf16"]
    assert row.status == "failed"
    assert row.reason


@pytest.mark.parametrize("error", [DeviceLost("gone"), RuntimeError("CUDA error: an illegal memory access")])
def test_a_lost_device_ends_the_search(error):
    with pytest.raises(type(error)):
        run(Bench(raises={"torchscript/bf16": error}))


def test_a_variant_that_has_killed_the_process_is_not_tried():
    bench = Bench(image={"torchscript/bf16": 0.001, "torchscript/frozen": 0.002})
    tuning = run(bench, attempts=Attempts(ended=["torchscript/bf16", "torchscript/frozen", "torchscript/bf16"]))
    assert tuning.chosen.variant == "torchscript/frozen"
    assert "torchscript/bf16" not in bench.opened
    assert [row.reason for row in tuning.rows if row.status == "failed"] == ["killed the process"]


def test_batches_for_which_there_is_no_memory_are_not_used():
    bench = Bench(image=dict.fromkeys(CPU, 0.02), batch=0.05, memory=dict.fromkeys(CPU, 4))
    tuning = run(bench, forward=100)
    assert {(row.speed.batch, row.status != "failed") for row in tuning.rows if row.speed} == {(4, True)}
    assert run(Bench(memory={"torchscript/bf16": 0})).chosen.variant != "torchscript/bf16"
    with pytest.raises(OutOfMemory, match="no memory for 1"):
        run(Bench(memory={"torchscript": 0}))


def test_a_plain_module_that_is_far_too_slow_does_not_take_all_batch_sizes():
    """Measuring all of them would take 930 s, and answering 240 pictures 1200 s."""
    bench = Bench(image=dict.fromkeys(CPU, 5.0), load=0.0)
    tuning = run(bench, seconds=60.0, forward=1000)
    assert tuning.chosen.variant == "torchscript"
    assert bench.now < 150, "two sizes, a batch of answers, and a turn"


def test_the_time_is_bounded_and_what_was_not_tried_is_not_chosen():
    bench = Bench(load=30.0)
    tuning = run(bench, seconds=60.0)
    assert "no time" in status(tuning).values()
    assert bench.now < 60 + 30 + 20, "the time, and the variant that was under way"


def test_compiling_is_not_begun_when_it_would_not_end_in_time():
    bench = Bench(image={"inductor/fp32": 0.001, "inductor/bf16": 0.001}, compile=300)
    tuning = run(bench, seconds=200.0)
    assert status(tuning)["inductor/fp32"] == status(tuning)["inductor/bf16"] == "no time"
    assert "about 300 s" in next(row.reason for row in tuning.rows if row.variant == "inductor/fp32")
    assert not [name for name in bench.opened if name.startswith("inductor")]
    assert run(Bench(image={"inductor/fp32": 0.001}, compile=30)).chosen.variant == "inductor/fp32"


ROWS = {
    "torchscript": Row("torchscript", "fp32", "slower", Speed(20, 1, 0.05, 1)),
    "optimized": Row("torchscript/optimized", "fp32", "slower", Speed(100, 1, 0.01, 1)),
    "bf16": Row("torchscript/bf16", "bf16", "slower", Speed(200, 1, 0.005, 1)),
}


@pytest.mark.parametrize(
    ("variant", "best", "rows", "tried"),
    [
        ("inductor/fp32", Row("openvino/fp32", "fp32", "chosen", Speed(170, 1, 0.01, 1)), "optimized", True),
        ("inductor/fp32", Row("openvino/fp32", "fp32", "chosen", Speed(190, 1, 0.01, 1)), "optimized", False),
        ("inductor/fp32", Row("openvino/fp32", "fp32", "chosen", Speed(190, 1, 0.01, 1)), "torchscript", True),
        ("inductor/bf16", Row("openvino/bf16", "bf16", "chosen", Speed(400, 1, 0.01, 1)), "optimized bf16", False),
        ("inductor/bf16", Row("openvino/bf16", "bf16", "chosen", Speed(300, 1, 0.01, 1)), "optimized bf16", True),
        ("inductor/bf16", Row("openvino/fp32", "fp32", "chosen", Speed(900, 1, 0.01, 1)), "optimized", True),
        ("torchscript/bf16", Row("openvino/fp32", "fp32", "chosen", Speed(900, 1, 0.01, 1)), "optimized", True),
    ],
)
def test_compiling_is_tried_only_where_it_can_win(variant, best, rows, tried):
    reason = no_hope(BY_NAME[variant], [*(ROWS[name] for name in rows.split()), best])
    assert (reason == "") is tried, reason
    assert not no_hope(BY_NAME[variant], [*(ROWS[name] for name in rows.split()), best], wanted=True)


def test_a_machine_that_is_disturbed_now_and_then_chooses_the_same_and_says_so():
    """Every other quarter of a second something else takes nine tenths of the machine."""
    bench = Bench(
        image={"torchscript/channels_last": 0.005},
        disturbed=lambda now: 10.0 if now % 0.5 < 0.25 else 1.0,
    )
    tuning = run(bench)
    assert tuning.chosen.variant == "torchscript/channels_last"
    assert tuning.speedup == pytest.approx(0.02 / 0.005, rel=0.3)
    assert "in the mean" in tuning.busy


def test_a_machine_that_slows_down_for_good_does_not_change_the_choice():
    """From the third second on everything takes four times as long: what was measured before looks better."""
    bench = Bench(
        image={"torchscript/channels_last": 0.004, "torchscript/optimized": 0.003},
        disturbed=lambda now: 1.0 if now < 3 else 4.0,
    )
    tuning = run(bench, precision="fp32")
    assert tuning.chosen.variant in ("torchscript/optimized", "torchscript/channels_last")
    assert tuning.speedup == pytest.approx(0.02 / 0.003, rel=0.4)


def test_a_size_that_was_disturbed_gets_a_second_chance():
    """Larger batches are better; while the largest was measured first, something else took half of the machine."""
    bench = Bench(image={"torchscript": 0.01}, batch=0.01, disturbed=lambda now: 2.0 if 0.5 < now < 1.3 else 1.0)
    speed = measure(Fake(bench, "torchscript"), DESCRIPTION, Bounds(60.0, 0.5, (1, 2, 4, 8)), bench.clock)
    assert speed.batch == 8
    assert speed.forward_seconds == pytest.approx(0.09)


@pytest.mark.parametrize("disturbed", ["torchscript", "torchscript/bf16"])
def test_one_contestant_that_is_disturbed_is_enough_to_doubt_a_duel(disturbed):
    bench = Bench()
    slow = iter([1.0] + [1.0, 3.0] * 1000)

    class Disturbed(Fake):
        def run(self, batch):
            bench.now += 0.01 * next(slow)

    backends = {name: Fake(bench, name) for name in ("torchscript", "torchscript/bf16")}
    backends[disturbed] = Disturbed(bench, disturbed)
    _, spread = duel([Contestant(each, Speed(1.0, 2, 1.0, 2)) for each in backends.values()], DESCRIPTION, bench.clock)
    assert busy(spread, 0.0, 2)


@pytest.mark.parametrize(
    ("spread", "load", "cores", "said"),
    [
        (1.02, 0.5, 2, ""),
        (1.29, 2.9, 2, ""),
        (1.5, 0.0, 2, "in the mean"),
        (1.02, 3.1, 2, "load average was 3.1 on 2 cores"),
        (1.02, 40.0, 64, ""),
    ],
)
def test_when_a_machine_counts_as_busy(spread, load, cores, said):
    assert busy(spread, load, cores) == "" if not said else said in busy(spread, load, cores)


def test_a_high_load_average_is_said():
    assert "load average" in run(Bench(load_average=1e3 * QUIET_LOAD)).busy
    assert run(Bench()).busy == ""


def test_a_slow_plain_module_leaves_time_for_the_others():
    """Its answers to all pictures would take 240 s: half of the time goes into as many as it has."""
    bench = Bench(image={"torchscript": 1.0, "torchscript/channels_last": 0.01, "torchscript/bf16": 0.001})
    tuning = run(bench, seconds=60.0)
    assert tuning.chosen.variant != "torchscript"
    assert tuning.chosen.precision == "fp32", "too few pictures were compared for less"


def test_a_batch_that_takes_too_long_is_not_used():
    tuning = run(Bench(image=dict.fromkeys(CPU, 0.02), batch=0.05), forward=0.15)
    assert (tuning.chosen.speed or tuning.plain).batch == 4


def test_of_equal_rates_the_smaller_batch_is_taken():
    tuning = run(Bench(image=dict.fromkeys(CPU, 0.02), batch=0.0001))
    assert (tuning.chosen.speed or tuning.plain).batch == 1


def test_batches_of_a_quick_model_are_large_enough_for_what_each_costs_the_worker():
    tuning = run(Bench(image=dict.fromkeys(CPU, 0.003), batch=0.0))
    assert (tuning.chosen.speed or tuning.plain).batch == 4


def test_a_missing_package_is_said():
    tuning = run(Bench())
    reasons = {row.variant: row.reason for row in tuning.rows if row.status == "unavailable"}
    assert reasons["torchscript/fp16"] == "not for cpu"
