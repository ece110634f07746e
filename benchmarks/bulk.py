"""Bulk throughput: the same TorchScript file, the same photos by file reference, this fleet beside what else there is.

    .venv/bin/python benchmarks/bulk.py [--photos 500] [--rounds 3] [--only ours ceiling mosec …] [--json FILE]

Systems run in turns, one at a time, each started, warmed, timed and ended in every round; figures are medians over
rounds, ratios medians of the ratios within a round. The clock runs from the moment that a client has the list of
photos until it has every photo's class. Each class is compared with the plain module's on a full decode by Pillow.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import _reference
from benchmarks._ceiling import Ceiling
from benchmarks._machine import busy_share
from benchmarks._ours import MODEL, NO_OPENVINO, TUNING, WORKER, Ours
from benchmarks._outcome import Outcome, arguments
from benchmarks._photos import make_photos
from benchmarks._statistics import agreement, median, ratio_of_rounds
from benchmarks._systems import System
from benchmarks.peers.environments import NotInstallable
from benchmarks.peers.over_celery import CeleryPeer
from benchmarks.peers.over_http import HttpPeer
from benchmarks.peers.registry import PEERS

from classifleet.config import Settings
from classifleet.worker.models import open_repository

LEAST_AGREEMENT: Final = 0.98
COOL_DOWN_SECONDS: Final = 2.0
MODES: Final[dict[str, dict[str, str]]] = {
    "auto": {"PRECISION": "auto"},
    "fp32": {"PRECISION": "fp32"},
    "auto, no OpenVINO": {"PRECISION": "auto"},
}
WITHOUT: Final = "auto, no OpenVINO"
PEER_TARGETS: Final = {"auto": 4.0, "fp32": 2.2}
CEILING_TARGETS: Final = {"auto": 0.85, "fp32": 0.9}


@dataclass(slots=True)
class Measured:
    """One system over all rounds: images a second by round, the share of right classes, and long runs."""

    rates: list[float] = field(default_factory=list)
    long_rates: list[float] = field(default_factory=list)
    agreements: list[float] = field(default_factory=list)
    details: str = ""
    failed: str = ""


def main() -> None:
    """Run all rounds, print and keep the outcome."""
    parser = arguments(__doc__)
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--long", type=int, default=2, help="times the photos, for ours and the ceiling; 0: no long run"
    )
    parser.add_argument("--tune-seconds", type=float, default=60)
    parser.add_argument("--only", nargs="*", default=["ours", "ceiling", *PEERS], choices=["ours", "ceiling", *PEERS])
    options = parser.parse_args()
    outcome = Outcome("bulk", "Bulk throughput")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = make_photos(folder / "photos", options.photos)
        systems = make_systems(folder, options.only, options.tune_seconds)
        expected = _reference.labels(model_file(), photos)
        outcome.note(f"others used {busy_share():.0%} of the machine's cores when the rounds began")
        found: dict[str, Measured] = {name: Measured() for name in systems}
        for number in range(options.rounds):
            for name, system in systems.items():
                one_round(system, folder, photos, expected, found[name], options.long)
                print(f"round {number + 1}: {name}: {found[name].failed or f'{found[name].rates[-1]:.1f} images/s'}")
                time.sleep(COOL_DOWN_SECONDS)
    conclude(outcome, found, options.photos, options.long)
    outcome.write(options.json)
    if broken := [name for name, each in found.items() if each.failed and name.startswith(("classifleet", "ceiling"))]:
        raise SystemExit(f"failed: {', '.join(broken)}")


def make_systems(folder: Path, only: Sequence[str], tune_seconds: float) -> dict[str, System]:
    """Those that are asked for, by name, in the order of their turns."""
    systems: list[System] = []
    for mode, settings in MODES.items():
        given = {
            **settings,
            "MODELS": MODEL,
            "TUNE_SECONDS": str(tune_seconds),
            "TUNING_CACHE": str(TUNING / ("without-openvino" if mode == WITHOUT else "all")),
            "MODEL_REPOSITORY": Settings.load().model_repository,
        }
        command = NO_OPENVINO if mode == WITHOUT else WORKER
        if "ceiling" in only:  # first, so that it and not a timed fleet tunes
            blocked = ["openvino"] if mode == WITHOUT else []
            systems.append(Ceiling(f"ceiling ({mode})", given, blocked))
        if "ours" in only:
            systems.append(Ours(f"classifleet ({mode})", folder / "photos", given, command))
    systems += [PEERS[name](model_file()) for name in PEERS if name in only]
    return {system.name: system for system in systems}


def model_file() -> Path:
    """The TorchScript file that all of them run."""
    repository = open_repository(Settings.load().model_repository)
    return repository.model_file(repository.resolve(MODEL))


def one_round(
    system: System, folder: Path, photos: Sequence[Path], expected: Sequence[int], found: Measured, times: int
) -> None:
    """Start, warm, time, end."""
    if found.failed:
        return
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        stack.callback(system.stop)
        try:
            system.start(place)
            if isinstance(system, HttpPeer | CeleryPeer):
                system.ready(photos[0])
        except (NotInstallable, RuntimeError, AssertionError) as error:
            found.failed = str(error).strip().splitlines()[-1]
            return
        system.classify(photos[: max(1, len(photos) // 8)])
        seconds, labels = timed(lambda: system.classify(photos))
        found.rates.append(len(photos) / seconds)
        found.agreements.append(agreement(labels, expected))
        found.details = system.details
        if times and not isinstance(system, HttpPeer | CeleryPeer):
            many = [*photos] * times
            found.long_rates.append(len(many) / timed(lambda: system.classify(many))[0])


def timed(call: Callable[[], list[int]]) -> tuple[float, list[int]]:
    """Wall-clock seconds, and what it returns."""
    began = time.perf_counter()
    value = call()
    return time.perf_counter() - began, value


def conclude(outcome: Outcome, found: Mapping[str, Measured], photos: int, times: int) -> None:
    """The table, and the targets."""
    ran = {name: each for name, each in found.items() if each.rates and not each.failed}
    peers = {name: each for name, each in ran.items() if not name.startswith(("classifleet", "ceiling"))}
    best = max(peers, key=lambda name: median(peers[name].rates), default=None)
    rows = []
    for name, each in ran.items():
        against = f"{ratio_of_rounds(each.rates, ran[best].rates):.2f}" if best else "-"
        ceiling = ran.get(name.replace("classifleet", "ceiling"))
        share = f"{ratio_of_rounds(each.rates, ceiling.rates):.2f}" if ceiling and ceiling is not each else "-"
        long = f"{median(each.long_rates):.1f}" if each.long_rates else "-"
        label = f"{min(each.agreements):.3f}"
        rows.append([name, f"{median(each.rates):.1f}", against, share, long, label, each.details])
    columns = ["system", "images/s", "x best peer", "x ceiling", f"images/s, {photos * times} images", "top-1 agrees"]
    outcome.table(f"{photos} photos, median of {len(next(iter(ran.values())).rates)} rounds", [*columns, "runs"], rows)
    for name, each in found.items():
        if each.failed:
            outcome.note(f"{name} could not be measured: {each.failed}")
    outcome.values = {"rates": {name: median(each.rates) for name, each in ran.items()}, "best_peer": best}
    least = min(value for each in ran.values() for value in each.agreements)
    outcome.target(
        "top-1 as the plain module", f"at least {LEAST_AGREEMENT}", f"{least:.3f}", met=least >= LEAST_AGREEMENT
    )
    for mode, wanted in PEER_TARGETS.items():
        if best and (ours := ran.get(f"classifleet ({mode})")):
            times_best = ratio_of_rounds(ours.rates, ran[best].rates)
            name = f"{mode} against the best peer ({best})"
            outcome.target(name, f"at least {wanted} times", f"{times_best:.2f}", met=times_best >= wanted)
    for mode, wanted in CEILING_TARGETS.items():
        ours, ceiling = ran.get(f"classifleet ({mode})"), ran.get(f"ceiling ({mode})")
        if ours and ceiling:
            share_of = ratio_of_rounds(ours.rates, ceiling.rates)
            name = f"{mode} against its no-queue ceiling"
            outcome.target(name, f"at least {wanted}", f"{share_of:.2f}", met=share_of >= wanted)
            if ours.long_rates and ceiling.long_rates:
                share_of = ratio_of_rounds(ours.long_rates, ceiling.long_rates)
                outcome.target(f"{name}, long run", f"at least {wanted}", f"{share_of:.2f}", met=share_of >= wanted)


if __name__ == "__main__":
    main()
