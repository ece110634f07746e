"""Rendering: readable at 80 columns, without colour, and deaf to what the text contains."""

import builtins
import io

import pytest
from PIL import Image
from rich.console import Console

from classifleet.config import ImageError, InvalidRequest, MissingExtra
from classifleet.producer.render import Bar, render, result_panel, results_table, save_annotated
from classifleet.producer.result import Result
from tests.unit.test_result import failed_model, failed_record, multi, record, single

WIDTH = 80


def shown(renderable, *, encoding="utf-8", **options):
    """What a terminal of 80 columns would get."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=WIDTH, **options).print(renderable)
    file.flush()
    text = file.buffer.getvalue().decode(encoding)
    assert all(len(line) <= WIDTH for line in text.splitlines()) or options
    return text


def result(given=None, **fields):
    return Result.from_record({**(given or record()), **fields})


def words(text):
    """The text with layout folded away."""
    return " ".join(text.replace("│", " ").split())


def test_one_result_in_full():
    text = words(shown(render([result()])))
    for part in (
        "cat.jpg",
        "https://example.org/cat.jpg?redacted",
        "640 x 480 JPEG, 81 KiB",
        "pets@1",
        "cat ███████████████░░░░░ 75.0%",
        "lynx ████░░░░░░░░░░░░░░░░ 20.0%",
        "dog ░░░░░░░░░░░░░░░░░░░░ 0.0%",
        "queue 2 ms, fetch 30 ms, decode 4 ms, batch wait 0 ms, forward 12 ms, total 49 ms",
    ):
        assert part in text


def test_one_result_shows_as_many_classes_as_asked():
    assert "lynx" not in shown(render([result()], top_k=1))


def test_the_reference_is_not_repeated():
    assert shown(result_panel(result(ref="cat.jpg"))).count("cat.jpg") == 1


def test_classes_that_apply_are_marked_without_colour():
    text = words(shown(result_panel(result(record(scene_1=multi()))), no_color=True))
    assert "scene@1 (* applies) * sea" in text
    assert "* beach" in text
    assert "* city" not in text


def test_errors_in_full():
    assert "error not_found: Nothing there." in words(shown(render([result(failed_record())])))
    text = words(shown(render([result(record(pets_1=single(), scene_1=failed_model()))])))
    assert "cat ██" in text
    assert "scene@1 error model_failed: It gave NaN." in text


def test_an_answer_without_predictions():
    empty = result(record(pets_1=single(predictions=[], truncated=True)))
    assert "none (cat is closest, 75.0%)" in shown(render([empty]))


def test_many_results_as_a_table():
    many = [result(), result(failed_record(), id="gone.jpg"), result(id="slow.jpg", timings_ms={"total": 2500.0})]
    lines = [words(line) for line in shown(render(many)).splitlines()]
    assert "image answer time" in lines
    assert "cat.jpg cat ████████░░ 75.0% 49 ms" in lines
    assert any(line.startswith("gone.jpg error not_found: Nothing there.") for line in lines)
    assert "slow.jpg cat ████████░░ 75.0% 2.5 s" in lines


def test_many_models_get_a_column_and_a_line_each():
    many = [result(record(pets_1=single(), scene_1=multi(), nsfw_1=failed_model())), result(failed_record())]
    lines = [words(line) for line in shown(results_table(many)).splitlines()]
    assert "image model answer time" in lines
    assert "cat.jpg pets@1 cat ████████░░ 75.0% 49 ms" in lines
    assert "scene@1 sea, beach █████████░ 90.0%" in lines
    assert any(line.startswith("nsfw@1 error model_failed") for line in lines)


def test_a_multi_label_answer_of_which_nothing_applies():
    nothing = result(record(scene_1=multi(predicted_classes=[])))
    assert "none (sea is closest, 90.0%)" in words(shown(results_table([nothing])))


def test_no_results():
    assert "image" in shown(render([]))


@pytest.mark.parametrize("given", [[result()], [result(), result()]], ids=["one", "many"])
def test_plain_ascii_where_there_is_nothing_else(given):
    text = shown(render(given), encoding="ascii")
    assert text.isascii()
    assert "###" in text


@pytest.mark.parametrize("given", [1, 2], ids=["one", "many"])
def test_text_from_outside_is_neither_markup_nor_control(given):
    hostile = "[red]\x1b[31m\u202eevil\n"
    bad = result(
        failed_record(error={"code": "fetch_failed", "message": hostile, "retryable": True}), id=hostile, ref=hostile
    )
    labelled = result(record(a_1=single(top=hostile)), id=hostile)
    for one in (bad, labelled):
        text = shown(render([one] * given), force_terminal=True, no_color=True)
        assert "[red]" in text
        assert "\x1b[31m" not in text
        assert "\u202e" not in text
        assert r"\x1b[31m" in "".join(text.split())


@pytest.mark.parametrize("length", [60, 300])
def test_long_text_stays_within_80_columns(length):
    long = "x" * length
    given = record(pets_1=single(top=long), **{long + "_1": multi()})
    assert shown(render([result(given, id=long, ref=long)]))
    assert shown(render([result(given, id=long, ref=long)] * 2))


@pytest.mark.parametrize(
    ("fraction", "bar"), [(0.0, "░░░░"), (0.5, "██░░"), (1.0, "████"), (7.3, "████"), (-2, "░░░░")]
)
def test_bar(fraction, bar):
    assert shown(Bar(fraction, 4)).strip() == bar


def test_raw_model_output_is_not_called_a_percentage():
    raw = result(
        record(pets_1=single(confidence=12.5, predictions=[{"class": "cat", "class_id": 1, "confidence": 12.5}]))
    )
    assert "12.50" in shown(render([raw]))


def picture(size=(640, 480), mode="RGB", **options):
    data = io.BytesIO()
    Image.new(mode, size, 128 if mode == "L" else (20, 120, 60)).save(data, options.pop("format", "PNG"), **options)
    return data.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".WEBP"])
def test_annotated_picture_keeps_the_picture_and_adds_a_band(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    save_annotated(picture(), result(), path)
    with Image.open(path) as saved:
        assert saved.width == 640
        assert saved.height > 480
        assert saved.crop((0, 480, *saved.size)).convert("L").getextrema()[1] > 200  # light text
        below = saved.crop((0, 0, 640, 450)).convert("RGB").getextrema()
    assert all(high - low <= 8 for low, high in below)  # nothing is drawn on the picture


@pytest.mark.parametrize(
    "given",
    [
        failed_record(),
        record(pets_1=single(), scene_1=failed_model()),
        record(scene_1=multi()),
        record(pets_1=single(predictions=[], truncated=True)),
    ],
    ids=["failed", "partial", "multi", "empty"],
)
def test_annotated_picture_of_every_kind_of_result(tmp_path, given):
    path = tmp_path / "out.png"
    save_annotated(picture((32, 32), "L"), result(given), str(path))
    with Image.open(path) as saved:
        assert saved.width > 32  # wide enough for its text
        assert saved.height > 32


def test_annotated_picture_lists_top_k(tmp_path):
    heights = []
    for top_k in (1, 4):
        save_annotated(picture(), result(), tmp_path / "out.png", top_k=top_k)
        with Image.open(tmp_path / "out.png") as saved:
            heights.append(saved.height)
    assert heights[0] < heights[1]


def test_annotated_picture_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_annotated(picture((400, 200), format="JPEG", exif=exif), result(), tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as saved:
        assert saved.width < saved.height


@pytest.mark.parametrize("data", [b"", b"not an image", picture()[:80]], ids=["empty", "text", "cut"])
def test_annotated_picture_of_what_is_none(tmp_path, data):
    with pytest.raises(ImageError, match="cannot read") as caught:
        save_annotated(data, result(), tmp_path / "out.png")
    assert caught.value.code == "undecodable"


@pytest.mark.parametrize("name", ["out", "out.txt", "out.psd"])
def test_annotated_picture_needs_a_suffix_that_can_be_written(tmp_path, name):
    with pytest.raises(InvalidRequest, match="suffix"):
        save_annotated(picture(), result(), tmp_path / name)


def test_annotated_picture_without_pillow_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_pillow(name, *args, **kwargs):
        if name == "PIL":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(MissingExtra, match=r"\[worker\]"):
        save_annotated(b"", result(), tmp_path / "out.png")
