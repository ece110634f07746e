"""JPEGs in several scans: browsers show nothing behind the first damage, nor before every colour has come."""

from __future__ import annotations

import re

import numpy as np
import pytest

from classifleet.config import ErrorCode
from classifleet.worker.decode import DecodeLimits, decode
from classifleet.worker.formats import jpeg
from tests.decode_support import IMAGENET, pixels, refusal
from tests.models_support import encode, noise

LENIENT = DecodeLimits(truncated="lenient")
IN_SCANS = encode(noise(80, 48), "JPEG", progressive=True)
IN_ONE = encode(noise(80, 48), "JPEG")
INKS = encode(noise(80, 48).convert("CMYK"), "JPEG", progressive=True)
SCAN = re.compile(rb"\xff\xda.*?(?=\xff[\xc4\xd9])", re.DOTALL)


def damaged(data: bytes) -> bytes:
    """With a marker in the middle of its first scan."""
    begin = data.index(b"\xff\xda") + 30
    return data[:begin] + b"\xff\xd0" + data[begin:]


@pytest.mark.parametrize("targets", [[], [IMAGENET]], ids=["Pillow", "simplejpeg"])
@pytest.mark.parametrize("data", [IN_SCANS, INKS], ids=["colours", "inks"])
def test_a_damaged_scan_is_refused(data, targets):
    assert decode(data, targets=targets).info == decode(data).info
    error = refusal(damaged(data), targets=targets)
    assert (error.code, "Corrupt JPEG data" in str(error)) == (ErrorCode.UNDECODABLE, True)


@pytest.mark.parametrize("targets", [[], [IMAGENET]], ids=["Pillow", "simplejpeg"])
def test_lenient_takes_a_damaged_scan_and_says_so(targets):
    assert decode(damaged(IN_SCANS), targets=targets, limits=LENIENT).info["truncated"]
    assert "truncated" not in decode(IN_SCANS, targets=targets, limits=LENIENT).info


def test_damage_in_the_only_scan_is_shown_by_everybody():
    assert decode(damaged(IN_ONE)).info["width"] == 80


def test_each_colour_must_come():
    """Without its scans with mean values, the two of all colours, Pillow shows grey, and browsers nothing."""
    without = re.sub(rb"\xff\xda\0\x0c\x03.*?(?=\xff[\xc4\xd9])", b"", IN_SCANS, flags=re.DOTALL)
    error = refusal(without)
    assert (error.code, "a scan for each colour" in str(error)) == (ErrorCode.UNDECODABLE, True)
    assert "a scan for each colour" in str(refusal(without, limits=LENIENT))


def test_a_sequential_frame_with_progressive_scans_is_refused():
    first = IN_SCANS.index(b"\xff\xda")
    sequential = IN_SCANS.replace(b"\xff\xc2", b"\xff\xc0", 1)
    one_color = sequential[:first] + re.sub(SCAN, b"", sequential[first:], count=1)
    assert jpeg.in_several_scans(one_color)
    assert refusal(one_color).code is ErrorCode.UNDECODABLE


def test_scans_are_counted_by_their_colours():
    assert jpeg.in_several_scans(IN_SCANS)
    assert not jpeg.in_several_scans(IN_ONE)
    assert not jpeg.in_several_scans(b"\xff\xd8\xff\xda")


def test_odd_metadata_is_no_damage():
    """libjpeg warns of a version that it does not know, before anything else."""
    at = IN_SCANS.index(b"JFIF\0") + 5
    strange = IN_SCANS[:at] + b"\x09" + IN_SCANS[at + 1 :]
    assert np.array_equal(pixels(strange), pixels(IN_SCANS))
