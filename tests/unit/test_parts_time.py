"""Files of many parts take no time: neither Pillow nor we walk through what nobody reads."""

import time
import zlib

import pytest

from classifleet.config.errors import ErrorCode
from classifleet.worker.decode import decode
from classifleet.worker.formats.jpeg import MAX_SCANS
from classifleet.worker.formats.parts import MAX_PARTS
from tests.decode_support import chunk, refusal
from tests.unit.test_parts import PHOTO, PLAIN, app1, before, behind

MOST_SECONDS = 1.5  # of CPU; each of the attacks took 3 to 15


def seconds_of(call, *arguments) -> float:
    began = time.thread_time()
    call(*arguments)
    return time.thread_time() - began


def test_many_exif_segments_are_not_joined():
    data = PHOTO[:2] + app1(b"Exif\0\0" + bytes(1_016)) * (MAX_PARTS - 100) + PHOTO[2:]
    assert seconds_of(decode, data) < MOST_SECONDS


def inflating(most: int) -> bytes:
    """A megabyte of zeros in a kilobyte, with a bad end, so that Pillow does not count it."""
    packer = zlib.compressobj(9)
    return packer.compress(bytes(most)) + packer.flush(zlib.Z_FULL_FLUSH) + b"\x07"


@pytest.mark.parametrize(
    ("kind", "head"), [(b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")], ids=["z", "i", "profile"]
)
@pytest.mark.parametrize("place", [before, behind])
def test_nothing_is_inflated_twenty_thousand_times(kind, head, place):
    bomb = chunk(kind, head + inflating((1 << 20) - 1_000))
    assert seconds_of(decode, place(PLAIN, bomb * (MAX_PARTS - 100))) < MOST_SECONDS


HEAD = PHOTO[: PHOTO.index(b"\xff\xda")]
SCAN, TABLE, TABLE_WITH_A_SCAN = b"\xff\xda\x00\x02", b"\xff\xc4\x00\x02", b"\xff\xc4\x00\x04\xff\xda"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (HEAD + SCAN * (MAX_SCANS + 50) + TABLE * 3_000_000, "scans"),
        (HEAD + SCAN + TABLE_WITH_A_SCAN * 3_000_000, "parts"),
        (HEAD.replace(b"\xff\xc0", b"\xff\xc2", 1) + b"\xff\xda\0\x08\1\x09\0\1\x3f\0" * 1_500_000, "parts"),
        (HEAD.replace(b"\xff\xc0", b"\xff\xc2", 1) + b"\xff\xda\0\x08\1\x09\0\1\x3f\0", "each colour"),
        # libjpeg skips what Pillow reads, and finds nothing but tables
        (HEAD[:2] + b"\xff\xf0\xff\xfc" + (HEAD[2:] + SCAN).ljust(0xFFFA, b"x") + TABLE * 3_000_000, "parts"),
    ],
    ids=["many scans", "seeming scans", "scans of no colour", "one of no colour", "no frame"],
)
def test_no_marker_is_sought_for_seconds(data, words):
    began = time.thread_time()
    assert words in str(refusal(data))
    assert time.thread_time() - began < MOST_SECONDS


def test_a_second_frame_header_is_refused_before_pillow_remembers_it():
    at = PHOTO.index(b"\xff\xc0")
    error = refusal(PHOTO[:at] + PHOTO[at : at + 19] * 2 + PHOTO[at + 19 :])
    assert (error.code, "frame header" in str(error)) == (ErrorCode.UNDECODABLE, True)
