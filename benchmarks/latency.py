"""Latency: one image at a time on an idle fleet, and answers as the offered load rises, beside the best peer.

    .venv/bin/python benchmarks/latency.py [--requests 100] [--peer celery-prefork] [--seconds 8] [--json FILE]

Idle: in turns of ten, decode and forward called directly in a process of their own, then the fleet; back to back, and
with a rest before each, in which caches and cores cool down on both sides. Load: requests arrive as a Poisson process
and do not wait for each other; a latency counts from the moment when the request should have been sent. A rate that
the system cannot keep up with ends the curve.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks._ceiling import Ceiling
from benchmarks._ours import MODEL, TUNING, Ours
from benchmarks._outcome import OUT, Outcome, arguments
from benchmarks._photos import make_photos
from benchmarks._statistics import percentile, poisson_arrivals
from benchmarks._systems import System
from benchmarks.bulk import model_file
from benchmarks.peers.registry import PEERS

from classifleet.config import Settings

QUEUE_MS: Final = 6.0
TURN: Final = 10
PAUSES: Final = (0.0, 0.1)
"""Seconds of rest before each request on the idle fleet."""
RATES: Final = (5, 10, 20, 40, 60, 80, 120, 160, 200, 250)
HOPELESS_MS: Final = 1000.0  # of p95: the queue grows, and higher rates say no more


def main() -> None:
    """Idle first, then the curve of each system."""
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=8.0, help="of load at each rate")
    parser.add_argument("--rates", type=float, nargs="*", default=RATES, help="images a second that are offered")
    parser.add_argument(
        "--peer", choices=[*PEERS, "none"], default=None, help="default: the best of the last bulk run"
    )
    parser.add_argument("--tune-seconds", type=float, default=60)
    options = parser.parse_args()
    outcome = Outcome("latency", "Latency")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = make_photos(folder / "photos", 100)
        settings = {
            "MODELS": MODEL,
            "TUNE_SECONDS": str(options.tune_seconds),
            "TUNING_CACHE": str(TUNING / "all"),
            "MODEL_REPOSITORY": Settings.load().model_repository,
        }
        direct, ours = Ceiling("direct", settings), Ours("classifleet", folder / "photos", settings)
        idle(outcome, direct, ours, folder, photos, options.requests)
        systems: list[System] = [ours]
        if (peer := options.peer or best_peer()) != "none":
            systems.append(PEERS[peer](model_file()))
        curves(outcome, systems, folder, photos, options.rates, options.seconds)
    outcome.write(options.json)


def idle(outcome: Outcome, direct: Ceiling, ours: Ours, folder: Path, photos: Sequence[Path], requests: int) -> None:
    """One image at a time, direct and through the fleet in turns."""
    with ExitStack() as stack:
        for system in (direct, ours):
            stack.callback(system.stop)
            system.start(Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder))))
        direct.direct(photos[:TURN])
        ours.each(photos[:TURN])
        found = {pause: in_turns(direct, ours, photos, requests, pause) for pause in PAUSES}
    rows = []
    for pause, (alone, queued) in found.items():
        rest = f", {pause:g} s of rest before each" if pause else ""
        rows += [
            _row(f"decode and forward, called directly ({direct.details}){rest}", alone),
            _row(f"classifleet ({ours.details}){rest}", queued),
        ]
        extra = (percentile(queued, 50) - percentile(alone, 50)) * 1000
        if pause:
            outcome.note(f"p50 beyond decode and forward{rest}: {extra:.1f} ms")
        else:
            what, wanted = "p50 beyond decode and forward", f"at most {QUEUE_MS:g} ms"
            outcome.target(what, wanted, f"{extra:.1f} ms", met=extra <= QUEUE_MS)
    outcome.table("One image at a time, idle", ["", "p50 ms", "p95 ms"], rows)


def in_turns(
    direct: Ceiling, ours: Ours, photos: Sequence[Path], requests: int, pause: float
) -> tuple[list[float], list[float]]:
    """Seconds of each request called directly, and through the fleet."""
    alone: list[float] = []
    queued: list[float] = []
    for turn in range(max(1, requests // TURN)):
        chosen = [photos[n % len(photos)] for n in range(turn * TURN, (turn + 1) * TURN)]
        alone += direct.direct(chosen, pause)
        queued += ours.each(chosen, pause)
    return alone, queued


def _row(name: str, values: Sequence[float]) -> list[str]:
    return [name, *(f"{percentile(values, p) * 1000:.1f}" for p in (50, 95))]


def best_peer() -> str:
    """Of the last bulk run that was kept; else Celery with two processes."""
    kept = OUT / "bulk.json"
    if kept.exists():
        best = Outcome.read(kept).values.get("best_peer")
        for key, make in PEERS.items():
            if make(Path()).name == best:
                return key
    return "celery-prefork"


def curves(
    outcome: Outcome,
    systems: Sequence[System],
    folder: Path,
    photos: Sequence[Path],
    rates: Sequence[float],
    seconds: float,
) -> None:
    """p50 and p95 of each system at each rate that it keeps up with."""
    found: dict[str, dict[float, list[float]]] = {}
    for system in systems:
        with ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
            stack.callback(system.stop)
            system.start(place)
            if ready := getattr(system, "ready", None):
                ready(photos[0])
            system.classify(photos)
            found[system.name] = curve(system, photos, rates, seconds)
    rows = []
    for rate in rates:
        cells = (found[system.name].get(rate) for system in systems)
        rows.append([f"{rate:g}", *itertools.chain.from_iterable(map(_cells, cells))])
    columns = [f"{system.name} {name}" for system in systems for name in ("p50 ms", "p95 ms")]
    outcome.table(f"Offered load, {seconds:g} s at each rate (- : no longer kept up)", ["images/s", *columns], rows)
    outcome.values["p95_ms"] = {
        name: {f"{rate:g}": percentile(values, 95) * 1000 for rate, values in by_rate.items()}
        for name, by_rate in found.items()
    }


def curve(system: System, photos: Sequence[Path], rates: Sequence[float], seconds: float) -> dict[float, list[float]]:
    """Latencies in seconds by rate, up to the first hopeless one."""
    found: dict[float, list[float]] = {}
    for number, rate in enumerate(rates):
        if arrivals := poisson_arrivals(rate, seconds, seed=number):
            found[rate] = system.open_loop(arrivals, photos)
            p95 = percentile(found[rate], 95) * 1000
            print(f"{system.name}: {rate:g}/s: p95 {p95:.0f} ms", flush=True)
            if p95 > HOPELESS_MS:
                break
    return found


def _cells(values: list[float] | None) -> tuple[str, str]:
    if values is None:
        return "-", "-"
    return f"{percentile(values, 50) * 1000:.0f}", f"{percentile(values, 95) * 1000:.0f}"


if __name__ == "__main__":
    main()
