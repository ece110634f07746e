"""Results for people: on a terminal, or drawn on the picture itself.

What is shown comes from outside (ids, references, labels, messages), so it is never read as markup and control
characters do not reach the terminal. Nothing is said by colour alone, and 80 columns are enough.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from classifleet.config import ErrorCode, ImageError, InvalidRequest, MissingExtra

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    from classifleet.producer.result import Answer, Prediction, Result

TOP_K: Final = 5
_BAR_CELLS: Final = 20
_SHORT_BAR_CELLS: Final = 10

_BAND_COLOR: Final = (24, 24, 27)
_TEXT_COLOR: Final = (250, 250, 250)
_TEXT_FRACTION: Final = 28  # of the picture's longer side
_MIN_TEXT_PIXELS: Final = 14


@dataclass(frozen=True, slots=True)
class Bar:
    """A probability as a bar of `cells` columns; plain ASCII where the terminal has nothing else."""

    fraction: float
    cells: int = _BAR_CELLS

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        full, rest = ("#", ".") if options.ascii_only else ("█", "░")
        filled = round(min(max(self.fraction, 0.0), 1.0) * self.cells)
        yield Text.assemble((full * filled, "green"), (rest * (self.cells - filled), "dim"), end="")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.cells, self.cells)


def render(results: Sequence[Result], *, top_k: int = TOP_K) -> RenderableType:
    """One result in full, several as a table.

    Args:
        results: In the order to be shown.
        top_k: Classes per model, at most, when there is one result.
    """
    return result_panel(results[0], top_k=top_k) if len(results) == 1 else results_table(results)


def result_panel(result: Result, *, top_k: int = TOP_K) -> Panel:
    """One result: each model's best classes with bars, or why there are none, and the time per stage."""
    parts: list[RenderableType] = [_about(result)]
    if result.error and not result.models:
        parts.append(_failed(result.error.code, result.error.message))
    for answer in result.models.values():
        parts += [Text(), _answer_block(answer, top_k)]
    if result.timings:
        parts += [Text(), Text(_stages(result), style="dim")]
    return Panel(Group(*parts), title=_plain(result.id), title_align="left", box=box.ROUNDED)


def results_table(results: Iterable[Result]) -> Table:
    """Many results: per image and model the best class, its bar, and the time in all; errors in their place."""
    rows = [row for result in results for row in _rows(result)]
    many_models = len({model.plain for _, model, *_ in rows} - {""}) > 1
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("image", overflow="fold", max_width=30)
    if many_models:
        table.add_column("model", overflow="fold", max_width=18)
    table.add_column("answer", overflow="fold", ratio=1)
    table.add_column("")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for image, model, *rest in rows:
        table.add_row(image, *([model] if many_models else []), *rest)
    return table


def _rows(result: Result) -> Iterator[tuple[Text, Text, Text, RenderableType, str, str]]:
    total = result.timings.get("total")
    time = _duration(total) if total is not None else ""
    image = _plain(result.id)
    if result.error and not result.models:
        yield image, Text(), _failed(result.error.code, result.error.message), "", "", time
    for answer in result.models.values():
        model = _plain(answer.model)
        if answer.error:
            yield image, model, _failed(answer.error.code, answer.error.message), "", "", time
        else:
            bar, percent = Bar(answer.confidence, _SHORT_BAR_CELLS), _percent(answer.confidence)
            yield image, model, _plain(_headline(answer)), bar, percent, time
        image, time = Text(), ""  # once per image


def _headline(answer: Answer) -> str:
    if answer.kind == "single":
        return answer.top
    return ", ".join(answer.predicted_classes) or _none(answer)


def _none(answer: Answer) -> str:
    return f"none ({answer.top} is closest, {_percent(answer.confidence)})"


def _about(result: Result) -> Text:
    lines = [] if result.ref == result.id else [result.ref]
    if result.image:
        image = result.image
        lines.append(f"{image.width} x {image.height} {image.format}, {_size(image.bytes)}")
    return Text("\n").join(_plain(line) for line in lines)


def _answer_block(answer: Answer, top_k: int) -> Group:
    heading = Text.assemble((_plain(answer.model).plain, "bold"))
    if answer.error:
        return Group(heading, _failed(answer.error.code, answer.error.message))
    applies = set(answer.predicted_classes) if answer.kind == "multi" else set()
    heading.append("  (* applies)" if answer.kind == "multi" else "")
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(overflow="fold", max_width=36)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    for prediction in answer.predictions[:top_k]:
        mark = "*" if prediction.label in applies else ""
        label = _plain(prediction.label)
        table.add_row(mark, label, Bar(prediction.confidence), _percent(prediction.confidence))
    return Group(heading, table if answer.predictions else _plain(_none(answer)))


def _failed(code: str, message: str) -> Text:
    return Text.assemble(("error ", "bold red"), (f"{code}: ", "red"), _plain(message))


def _stages(result: Result) -> str:
    return ", ".join(f"{stage.replace('_', ' ')} {_duration(time)}" for stage, time in result.timings.items())


def _percent(confidence: float) -> str:
    """A probability as a percentage; raw model output, which is not one, as it is."""
    return f"{confidence:.1%}" if 0 <= confidence <= 1 else f"{confidence:.2f}"


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _size(count: int) -> str:
    return f"{count} bytes" if count < 1024 else f"{count / 1024:,.0f} KiB"


def _plain(text: str) -> Text:
    """Text from outside: no markup, and what does not print is shown as an escape."""
    return Text("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def save_annotated(data: bytes, result: Result, path: str | Path, *, top_k: int = TOP_K) -> None:
    """Write the picture with its labels on a band below it; the picture itself stays uncovered.

    Args:
        data: The image as it was submitted.
        result: What the fleet said of it; an error is written too.
        path: Where to; its suffix names the format.
        top_k: Lines per model, at most.

    Raises:
        MissingExtra: Pillow is not installed.
        ImageError: `undecodable`: Pillow cannot read the data.
        InvalidRequest: Pillow writes no format with that suffix.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingExtra("worker", "drawing labels on a picture") from None
    target = Path(path)
    if Image.registered_extensions().get(target.suffix.lower()) not in Image.SAVE:
        raise InvalidRequest(f"{target.name} does not end in the suffix of an image format, such as .png or .jpg")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(ErrorCode.UNDECODABLE, f"Pillow cannot read the picture: {error}") from error
    _with_band(picture, _captions(result, top_k)).save(target)


def _captions(result: Result, top_k: int) -> list[str]:
    """The lines of the band."""
    if result.error and not result.models:
        return [str(result.error)]
    lines: list[str] = []
    for answer in result.models.values():
        prefix = f"{answer.model}  " if len(result.models) > 1 else ""
        if answer.error:
            lines.append(f"{prefix}{answer.error}")
        else:
            captions = [_caption(prediction) for prediction in answer.predictions[:top_k]]
            lines += [prefix + caption for caption in captions or [_none(answer)]]
    return [_plain(line).plain for line in lines]


def _caption(prediction: Prediction) -> str:
    return f"{_percent(prediction.confidence):>6}  {prediction.label}"


def _with_band(picture: Image.Image, lines: list[str]) -> Image.Image:
    """The picture above its lines, on a canvas wide enough for both."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(max(_MIN_TEXT_PIXELS, max(picture.size) // _TEXT_FRACTION))
    text = "\n".join(lines)
    width, height = _text_size(text, font)
    margin = round(font.size / 2) if isinstance(font, ImageFont.FreeTypeFont) else _MIN_TEXT_PIXELS // 2
    size = (max(picture.width, width + 2 * margin), picture.height + height + 2 * margin)
    canvas = Image.new("RGB", size, _BAND_COLOR)
    canvas.paste(picture, ((canvas.width - picture.width) // 2, 0))
    ImageDraw.Draw(canvas).text((margin, picture.height + margin), text, font=font, fill=_TEXT_COLOR)
    return canvas


def _text_size(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> tuple[int, int]:
    from PIL import Image, ImageDraw

    _, _, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), text, font=font)
    return round(right), round(bottom)
