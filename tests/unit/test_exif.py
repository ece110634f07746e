"""Which orientation of an Exif block counts: that which browsers read."""

import struct

import pytest

from classifleet.config.errors import ImageError
from classifleet.worker.formats import exif


def entry(value: int, *, tag: int = 0x112, kind: int = 3, count: int = 1) -> bytes:
    return struct.pack("<HHI", tag, kind, count) + struct.pack(
        "<I" if kind == 4 else "<HH", *[value, 0][: 1 + (kind != 4)]
    )


def directory(*entries: bytes) -> bytes:
    return len(entries).to_bytes(2, "little") + b"".join(entries) + bytes(4)


HEAD_OF_TIFF = b"II*\0\x08\0\0\0"
TO_SUB, SUB_AT = 0x8769, 8 + 2 + 2 * 12 + 4


@pytest.mark.parametrize(
    ("block", "orientation"),
    [
        (directory(entry(6)), 6),
        (directory(entry(6))[:-4], 6),
        (b"\x09" + directory(entry(6))[1:], 6),  # more entries than there are
        (directory(entry(6, count=2)), 1),
        (directory(entry(6, count=0)), 1),
        (directory(entry(6, kind=4)), 1),
        (directory(entry(4, kind=4), entry(5)), 5),
        (directory(entry(5), entry(3)), 5),
        (directory(entry(1), entry(6)), 1),
        (directory(entry(9), entry(3)), 3),
        (directory(entry(0), entry(6)), 6),
        (directory(entry(SUB_AT, tag=TO_SUB, kind=4), entry(3)) + directory(entry(6)), 6),
        (directory(entry(3), entry(SUB_AT, tag=TO_SUB, kind=4)) + directory(entry(6)), 3),
        (b"", 1),
    ],
)
def test_the_first_orientation_that_is_one_counts(block, orientation):
    assert exif.orientation(HEAD_OF_TIFF + block) == orientation


def test_directories_that_hold_each_other_are_refused():
    block = HEAD_OF_TIFF + directory(*[entry(8, tag=TO_SUB, kind=4)] * 5_000)
    with pytest.raises(ImageError, match="entries"):
        exif.orientation(block)


@pytest.mark.parametrize("missing", [1, 2, 3, 6, 9])
def test_a_block_that_ends_in_its_orientation_is_refused(missing):
    """Firefox reads what there is, Chromium does not."""
    block = HEAD_OF_TIFF + directory(entry(1, tag=0x100), entry(6))
    assert exif.orientation(block[:-4]) == exif.orientation(block) == 6
    with pytest.raises(ImageError, match="ends in its orientation"):
        exif.orientation(block[: -4 - missing])
    assert exif.orientation(HEAD_OF_TIFF + directory(entry(6), entry(1, tag=0x100))[: -4 - missing]) == 6


def density(across: int, down: int, width: int, height: int, unit: int = 2) -> bytes:
    """Pixels an inch, and the sides that a program says a picture of 960 x 96 has."""
    values = 8 + 2 + 4 * 12 + 4
    sides = directory(entry(width, tag=0xA002, kind=4), entry(height, tag=0xA003, kind=4))
    root = directory(
        struct.pack("<HHII", 0x11A, 5, 1, values + len(sides)),
        struct.pack("<HHII", 0x11B, 5, 1, values + len(sides) + 8),
        entry(unit, tag=0x128),
        struct.pack("<HHII", TO_SUB, 4, 1, values),
    )
    return HEAD_OF_TIFF + root + sides + struct.pack("<4I", across, 1, down, 1)


def test_pixels_that_browsers_stretch_are_refused():
    """They show 96 x 96."""
    with pytest.raises(ImageError, match="longer than wide"):
        exif.refuse_stretched(density(720, 72, 96, 96), (960, 96))


@pytest.mark.parametrize(
    "block",
    [
        density(300, 300, 230, 23),
        density(720, 72, 960, 96),
        density(720, 72, 97, 99),
        density(720, 72, 96, 96, unit=3),
        density(0, 72, 96, 96),
        density(720, 72, 96, 96)[:-12],
        HEAD_OF_TIFF + directory(entry(6)),
        b"",
    ],
)
def test_other_densities_do_not_count(block):
    exif.refuse_stretched(block, (960, 96))
