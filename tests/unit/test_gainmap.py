"""Gain maps that Chromium applies on an ordinary display, and those that it does not."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from classifleet.config import ErrorCode
from tests.decode_support import pixels, refusal
from tests.models_support import encode, noise

PHOTO = encode(noise(64, 48), "JPEG")
XMP, ISO = b"http://ns.adobe.com/xap/1.0/\0", b"urn:iso:std:iso:ts:21496:-1\0"


def segment(code: int, body: bytes) -> bytes:
    return bytes((0xFF, code)) + struct.pack(">H", len(body) + 2) + body


def with_second(*segments: bytes, first: tuple[bytes, ...] = (), several: bool = True) -> bytes:
    """A photo that names a second picture, behind it, which has these segments."""
    names = segment(0xE2, b"MPF\0" + bytes(80)) if several else b""
    return PHOTO[:2] + names + b"".join(first) + PHOTO[2:] + PHOTO[:2] + b"".join(segments) + PHOTO[2:]


def xmp(*fields: str) -> bytes:
    return segment(0xE1, XMP + b'<rdf:Description hdrgm:Version="1.0" ' + " ".join(fields).encode() + b"/>")


def iso(base: int, alternate: int, flags: int = 0) -> bytes:
    numbers = (10, base, alternate) if flags & 8 else (base, 10, alternate, 10)
    return segment(0xE2, ISO + struct.pack(f">HHB{len(numbers)}I", 0, 0, flags, *numbers))


SDR, HDR = 'hdrgm:BaseRenditionIsHDR="False"', 'hdrgm:BaseRenditionIsHDR="True"'


@pytest.mark.parametrize(
    "segments",
    [
        [],
        [xmp()],
        [xmp(SDR)],
        [xmp(SDR, "hdrgm:HDRCapacityMin='0'", 'hdrgm:HDRCapacityMax="3.5"')],
        [iso(0, 30)],
        [iso(0, 30, flags=8)],
        [xmp(SDR), iso(0, 30)],
        [segment(0xE1, XMP + b"<a>&amp;</a>")],
    ],
)
def test_an_ordinary_gain_map_is_left_alone(segments):
    """A photo of a telephone."""
    assert np.array_equal(pixels(with_second(*segments)), pixels(PHOTO))


STRANGE = {
    "base": xmp(HDR),
    "base as an element": segment(0xE1, XMP + b"<hdrgm:BaseRenditionIsHDR>True</hdrgm:BaseRenditionIsHDR>"),
    "another prefix": segment(0xE1, XMP + b"<x a:BaseRenditionIsHDR='True'/>"),
    "from below": xmp(SDR, 'hdrgm:HDRCapacityMin="-5"'),
    "letters by number": segment(0xE1, XMP + b"<x a:BaseRenditionIsHD&#82;='True'/>"),
    "entities": segment(0xE1, XMP + b"<!DOCTYPE x [<!ENTITY t 'True'>]><x/>"),
    "other encoding": segment(0xE1, XMP + "<x/>".encode("utf-16")),
    "iso": iso(60, 0),
    "iso, equal": iso(0, 0),
    "iso, one denominator": iso(60, 0, flags=8),
    "iso, backward": iso(0, 60, flags=4),
    "iso, cut": segment(0xE2, ISO + bytes(6)),
    "twice": xmp(SDR, HDR),
}


@pytest.mark.parametrize("name", STRANGE)
def test_one_that_is_applied_on_ordinary_displays_is_refused(name):
    data = with_second(STRANGE[name])[: -len(PHOTO) + 2]  # nothing but the segment counts
    error = refusal(data)
    assert (error.code, "gain map" in str(error)) == (ErrorCode.UNSUPPORTED_FORMAT, True)
    assert np.array_equal(pixels(with_second(STRANGE[name], several=False)), pixels(PHOTO))


def test_another_picture_may_lie_in_a_segment_of_the_first():
    assert "gain map" in str(refusal(with_second(first=(segment(0xEF, STRANGE["base"]),))))
    assert "gain map" in str(refusal(with_second(first=(STRANGE["base"],))))


def test_what_the_first_picture_says_of_itself_is_read_in_part():
    harmless = segment(0xE1, XMP + b"<x a='line&#xA;line'/>"), segment(0xE2, ISO + bytes(4))
    assert np.array_equal(pixels(with_second(first=harmless)), pixels(PHOTO))


def test_descriptions_without_end_are_refused():
    """Each could claim 64 KiB."""
    many = (b"\xff\xe1\xff\xff" + XMP) * 300_000
    assert "gain map" in str(refusal(with_second(many)))
    assert np.array_equal(pixels(with_second(*[xmp(SDR)] * 99)), pixels(PHOTO))
