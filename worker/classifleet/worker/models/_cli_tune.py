"""`classifleet models tune`, and what `models show` says of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from classifleet.config import InvalidRequest, Settings
from classifleet.worker.cores import wait_asleep
from classifleet.worker.models._cli_options import (
    JsonOption,
    ModelArgument,
    RepositoryOption,
    open_location,
    print_json,
    print_table,
)
from classifleet.worker.models.description import DIGEST_LENGTH

if TYPE_CHECKING:
    from classifleet.worker.models.description import ModelDescription
    from classifleet.worker.models.repository import Repository
    from classifleet.worker.models.tuning import Row, Split, Tuning

SPLIT_COLUMNS: Final = ("threads that decode", "threads of the model", "batch", "images/s", "outcome")


class PrecisionName(StrEnum):
    """Of the arithmetic inside the model."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def tune(
    model: ModelArgument,
    photos: Annotated[
        Path | None,
        typer.Option(help="A folder of photos like those that will be classified; best 200 to 1000."),
    ] = None,
    precision: Annotated[PrecisionName | None, typer.Option(help="Default: the setting PRECISION.")] = None,
    device: Annotated[str, typer.Option(help="`auto`, `cpu`, `cuda` or `cuda:1`.")] = "auto",
    seconds: Annotated[float | None, typer.Option(min=1, help="Default: the setting TUNE_SECONDS.")] = None,
    repository: RepositoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the fastest way to run a model here that gives its answers, and keep it for the workers.

    **Examples:** `classifleet models tune imagenet`, `classifleet models tune imagenet --photos ./uploads`
    """
    where = open_location(repository)
    key = where.resolve(model)
    settings = Settings.load(precision=precision.value if precision else None, tune_seconds=seconds)
    files = _files(photos) if photos else []
    wait_asleep()  # as in a worker
    from classifleet.worker.loading import device_name
    from classifleet.worker.models.tuned import summary, tune_model

    tuning = tune_model(where, key, settings, device_name(device), photos=files)
    if as_json:
        print_json({**summary(tuning), "rows": [asdict(row) for row in tuning.rows]})
        return
    columns = ("variant", "images/s", "batch", "pictures", "same answers", "mean worst", "outcome")
    print_table(columns, [_cells(row, tuning) for row in tuning.rows])
    if tuning.splits:
        print_table(SPLIT_COLUMNS, [_split_cells(split, tuning) for split in tuning.splits])
    typer.echo(f"{key} runs as {tuning.chosen.variant}, {tuning.speedup:.1f} times as fast as the file as it came")
    if tuning.busy:
        again = "tune again when it is not" if tuning.own_photos else "the next worker that starts here tunes again"
        typer.echo(f"the machine was busy: {tuning.busy}; {again}")


def kept(repository: Repository, description: ModelDescription) -> list[str]:
    """A line for each outcome that is kept in the repository; read without torch."""
    from classifleet.config.settings import Settings

    settings = Settings.load()
    folder = Path(settings.tuning_cache).expanduser() if settings.tuning_cache else repository.path / ".tuning"
    digest = "[0-9a-f]" * DIGEST_LENGTH  # `*` would find those of a model that is named `imagenet-1`, too
    found = sorted(folder.glob(f"{description.name}-{description.version}-{digest}.json"))
    return [_kept_line(file) for file in found]


def line(tuning: dict[str, Any]) -> str:
    """An outcome as one line.

    Args:
        tuning: The fields of `tuning.Tuning`.
    """
    chosen = next(row for row in tuning["rows"] if row["status"] == "chosen")
    speed, parity, split = chosen["speed"] or tuning["plain"], chosen["parity"], tuning["split"]
    parts = [
        f"{chosen['variant']}: {speed['rate']:.0f} images/s in batches of {speed['batch']}",
        f"{speed['rate'] / tuning['plain']['rate']:.1f}x plain",
    ]
    if parity:
        same = parity["agreeing"] / parity["decided"] if parity["decided"] else 1.0
        decided = f"{parity['decided']} decided of {parity['pictures']}"
        parts.append(f"equal answers to {same:.1%} of {decided}, mean worst {parity['mean_worst']:.1e}")
    if split:
        threads = f"{split['decode_threads']} threads decode, {split['forward_threads']} run the model"
        parts.append(f"{threads} in batches of up to {split['batch']}")
    if tuning["busy"]:
        parts.append("the machine was busy")
    return ", ".join(parts)


def _kept_line(file: Path) -> str:
    try:
        return line(json.loads(file.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return f"{file.name}: not readable; tuned again at the next start"


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InvalidRequest(f"--photos {folder}: is not a folder")
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _cells(row: Row, tuning: Tuning) -> dict[str, str]:
    cells = {"variant": row.variant, "outcome": f"{row.status}: {row.reason}" if row.reason else row.status}
    if row.speed:
        times = row.speed.rate / tuning.plain.rate
        cells |= {"images/s": f"{row.speed.rate:.1f} ({times:.1f}x)", "batch": str(row.speed.batch)}
    if row.parity:
        share = f"{row.parity.agreement:.1%} of {row.parity.decided}"
        cells |= {"pictures": str(row.parity.pictures), "same answers": share}
        cells |= {"mean worst": f"{row.parity.mean_worst:.1e}"}
    return cells


def _split_cells(split: Split, tuning: Tuning) -> dict[str, str]:
    return {
        **dict(
            zip(
                SPLIT_COLUMNS,
                (str(split.decode_threads), str(split.forward_threads), str(split.batch), f"{split.rate:.0f}"),
                strict=False,
            )
        ),
        "outcome": "chosen" if split == tuning.split else "",
    }
