"""Files that are broken where a decoder reads them: in their parts, whose lengths and checksums stay right.

Flipped bits seldom get past a checksum. So a file is taken apart (chunks, segments, blocks, headers), its parts are
mutated, doubled, moved, left out or taken from another file, and it is put together again.
"""

from __future__ import annotations

import functools
import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image, ImageCms, ImageDraw

from tests.decode_support import chunk
from tests.models_support import NASTY, encode

LARGEST_BYTES = 60_000
INTERESTING = (0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 63, 64, 127, 128, 254, 255)


class Part(NamedTuple):
    """A piece of a file: what names it, and what it holds."""

    kind: bytes
    body: bytes


def picture(randomness: random.Random) -> Image.Image:
    """Large flat shapes, so that whoever sees another picture sees it at once."""
    size = randomness.choice(((64, 48), (40, 56), (33, 31), (120, 80)))
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        box = (
            sorted(randomness.randrange(size[0]) for _ in range(2)),
            sorted(randomness.randrange(size[1]) for _ in range(2)),
        )
        color = tuple(randomness.randrange(256) for _ in range(3))
        draw.rectangle((box[0][0], box[1][0], box[0][1], box[1][1]), fill=color)
    return image


def _profile(randomness: random.Random) -> bytes:
    space = randomness.choice(("sRGB", "XYZ", "LAB"))
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]


def _exif(randomness: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = randomness.randrange(10)
    return b"Exif\0\0" + exif.tobytes()[6:]


def _clear(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    return image


def made(kind: str, randomness: random.Random) -> bytes:
    """A sound file of a format, in any of the ways there are to write one."""
    image = picture(randomness)
    options: dict[str, object] = {}
    if randomness.random() < 0.3 and kind != "BMP":
        options["icc_profile"] = _profile(randomness)
    if randomness.random() < 0.3 and kind in ("JPEG", "PNG", "WEBP"):
        options["exif"] = _exif(randomness)
    others = [image.rotate(90 * turn) for turn in (1, 2)]
    animated = {"save_all": True, "append_images": others} if randomness.random() < 0.25 else {}
    match kind:
        case "JPEG":
            mode = randomness.choice(("RGB", "RGB", "RGB", "L", "CMYK"))
            options |= {
                "quality": randomness.choice((30, 75, 95)),
                "subsampling": randomness.choice((0, 1, 2)),
                "progressive": randomness.random() < 0.4,
                "restart_marker_blocks": randomness.choice((0, 0, 3)),
            }
            return encode(image.convert(mode), kind, **options)
        case "PNG" if randomness.random() < 0.4:
            return _plain_png(image, randomness)
        case "PNG":
            mode = randomness.choice(("RGB", "RGBA", "L", "LA", "P", "1", "I;16"))
            if mode in ("RGB", "RGBA", "L"):
                options |= animated
            if mode == "P" and randomness.random() < 0.5:
                options["bits"] = randomness.choice((1, 2, 4))
                image = image.quantize(2 ** int(str(options["bits"])))
            return encode(
                _clear(image).convert(mode) if mode in ("RGBA", "LA") else image.convert(mode), kind, **options
            )
        case "WEBP":
            options |= {"lossless": randomness.random() < 0.5, **animated}
            return encode(_clear(image) if randomness.random() < 0.5 else image, kind, **options)
        case "GIF":
            options = dict(animated)
            if randomness.random() < 0.4:
                options |= {"transparency": randomness.randrange(4), "disposal": randomness.randrange(4)}
            image = image.quantize(randomness.choice((2, 4, 16, 256)))
            return _moved(encode(image, kind, interlace=randomness.randrange(2), **options), randomness)
    return bmp(image, randomness)


def _moved(gif: bytes, randomness: random.Random) -> bytes:
    """Half of the time on a canvas of another size, or a part of it."""
    at = gif.find(b",", 13 + (3 << (gif[10] & 7) + 1 if gif[10] & 0x80 else 0))
    if randomness.random() < 0.5 or at < 0:
        return gif
    canvas = struct.pack("<HH", *(randomness.choice((1, 30, 130, 160)) for _ in range(2)))
    place = struct.pack("<HH", *(randomness.choice((0, 0, 5, 10)) for _ in range(2)))
    version = randomness.choice((b"GIF87a", b"GIF89a", b"GIF89a"))
    return version + canvas + gif[10 : at + 1] + place + gif[at + 5 :]


_PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _plain_png(image: Image.Image, randomness: random.Random) -> bytes:
    """One of a depth, and of an order of its pixels, that Pillow does not write."""
    kind, depth = randomness.choice(
        (
            (0, 1),
            (0, 2),
            (0, 4),
            (0, 8),
            (0, 16),
            (2, 8),
            (2, 16),
            (3, 1),
            (3, 2),
            (3, 4),
            (3, 8),
            (4, 8),
            (4, 16),
            (6, 8),
            (6, 16),
        )
    )
    channels = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}[kind]
    parts = []
    if kind == 3:
        image = image.quantize(1 << depth)
        parts = [Part(b"PLTE", bytes(image.getpalette() or [])[: 3 << depth])]
    else:
        image = (_clear(image) if kind in (4, 6) else image).convert(channels)
    if randomness.random() < 0.4 and kind in (0, 2, 3):
        first = bytes(image.crop((0, 0, 1, 1)).tobytes())
        key = {3: bytes(randomness.randrange(256) for _ in range(1 << min(depth, 4)))}.get(
            kind, b"".join(_sample(value, depth).to_bytes(2) for value in first)
        )
        parts.append(Part(b"tRNS", key))
    interlaced = randomness.randrange(2)
    data = b"".join(
        _png_pass(image, depth, indexed=kind == 3, places=places)
        for places in (_PNG_PASSES if interlaced else ((0, 0, 1, 1),))
    )
    head = struct.pack(">IIBBBBB", *image.size, depth, kind, 0, 0, interlaced)
    return _png_together([Part(b"IHDR", head), *parts, Part(b"IDAT", zlib.compress(data)), Part(b"IEND", b"")])


def _sample(value: int, depth: int) -> int:
    return value * 257 if depth == 16 else value >> 8 - depth


def _png_pass(image: Image.Image, depth: int, *, indexed: bool, places: tuple[int, int, int, int]) -> bytes:
    left, top, right, down = places
    bands, wide = len(image.getbands()), image.tobytes()
    rows = []
    for y in range(top, image.height, down):
        row = [
            wide[(y * image.width + x) * bands + band]
            for x in range(left, image.width, right)
            for band in range(bands)
        ]
        samples = row if indexed else [_sample(value, depth) for value in row]
        text = "".join(f"{sample:0{depth}b}" for sample in samples)
        if text:
            rows.append(b"\0" + int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8)))
    return b"".join(rows)


def bmp(image: Image.Image, randomness: random.Random) -> bytes:
    """One of the ways to write a BMP, of which Pillow knows few."""
    bits = randomness.choice((1, 4, 8, 16, 24, 32))
    size = randomness.choice((12, 40, 40, 40, 52, 56, 64, 108, 124))
    if bits <= 8:
        colors = randomness.choice((0, 1 << bits, 1 << bits, 2, randomness.randrange(1, (1 << bits) + 1)))
        used = min(colors or 1 << bits, 1 << bits)
        image = randomness.choice((image.quantize(used), image.convert("L").quantize(used)))
        flat = image.getpalette() or []
        flat = (flat + [0] * 768)[: 3 * used]
        if randomness.random() < 0.2:
            flat = [level * (255 if used == 2 else 1) for level in range(used) for _ in range(3)]
        palette = b"".join(bytes(flat[at : at + 3][::-1]) + b"\0" * (size > 12) for at in range(0, 3 * used, 3))
        rows = [
            _packed(bytes(image.crop((0, y, image.width, y + 1)).get_flattened_data()), bits)
            for y in range(image.height)
        ]
    else:
        colors, palette = 0, b""
        raw = {16: "BGR;15", 24: "BGR", 32: "BGRA"}[bits]
        source = _clear(image) if bits == 32 else image
        if bits == 16:
            rows = [_fifteen(source.crop((0, y, source.width, y + 1))) for y in range(source.height)]
        else:
            rows = [source.crop((0, y, source.width, y + 1)).tobytes("raw", raw) for y in range(source.height)]
    rows = [row.ljust(-(-len(row) // 4) * 4, b"\0") for row in rows]
    down = randomness.random() < 0.2 and size > 12
    body = b"".join(rows if down else rows[::-1])
    if size == 12:
        head = struct.pack("<IHHHH", 12, image.width, image.height, 1, bits)
    else:
        coding = 3 if bits in (16, 32) and randomness.random() < 0.5 else 0
        masks = {16: (0x7C00, 0x3E0, 0x1F, 0x8000), 32: (0xFF0000, 0xFF00, 0xFF, 0xFF000000)}.get(bits, (0,) * 4)
        masks = masks if randomness.random() < 0.5 else (*masks[:3], 0)
        head = struct.pack(
            "<IiiHHIIiiII", size, image.width, -image.height if down else image.height, 1, bits, coding, len(body),
            2835, 2835, colors, 0,
        )  # fmt: skip
        if size > 40:
            head = (head + struct.pack("<4I", *masks) + b"BGRs").ljust(size, b"\0")[:size]
        elif coding:
            head += struct.pack("<3I", *masks[:3])
    at = 14 + len(head) + len(palette)
    return struct.pack("<2sIII", b"BM", at + len(body), 0, at) + head + palette + body


def _packed(row: bytes, bits: int) -> bytes:
    text = "".join(f"{index:0{bits}b}"[-bits:] for index in row)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8))


def _fifteen(row: Image.Image) -> bytes:
    return b"".join(struct.pack("<H", r >> 3 << 10 | g >> 3 << 5 | b >> 3) for r, g, b in row.get_flattened_data())


# Apart, and together


def _png_apart(data: bytes) -> list[Part]:
    parts, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        parts.append(Part(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return parts


def _png_together(parts: Sequence[Part]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


_JPEG_ALONE = tuple(bytes((code,)) for code in (1, *range(0xD0, 0xDA)))


def _jpeg_apart(data: bytes) -> list[Part]:
    parts, at = [], 2
    while marker := re.compile(rb"\xff[^\x00\xff]", re.DOTALL).search(data, at):
        kind, at = marker[0], marker.end()
        length = 0 if kind[1:] in _JPEG_ALONE else int.from_bytes(data[at : at + 2])
        end = at + length
        if kind[1] == 0xDA:  # and its pixels
            after = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL).search(data, end)
            end = after.start() if after else len(data)
        parts.append(Part(kind, data[at + min(2, length) : end]))
        at = end
    return parts


def _jpeg_together(parts: Sequence[Part]) -> bytes:
    out = [b"\xff\xd8"]
    for kind, body in parts:
        alone = kind[1:] in _JPEG_ALONE
        length = (6 + 2 * body[0] if body else 2) if kind[1:] == b"\xda" else len(body) + 2
        out += [kind, b"" if alone else min(length, 65_535).to_bytes(2), body]
    return b"".join(out)


def _webp_apart(data: bytes) -> list[Part]:
    parts, at = [], 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append(Part(data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return parts


def _webp_together(parts: Sequence[Part]) -> bytes:
    body = b"".join(kind + len(body).to_bytes(4, "little") + body + b"\0" * (len(body) % 2) for kind, body in parts)
    return b"RIFF" + (len(body) + 4).to_bytes(4, "little") + b"WEBP" + body


def _gif_apart(data: bytes) -> list[Part]:
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    parts = [Part(b"head", data[:13]), Part(b"colors", data[13:at])]
    while at < len(data):
        begin = at
        if data[at] == 0x2C:
            at += 10
            at += 1 + (3 << (data[at - 1] & 7) + 1 if at <= len(data) and data[at - 1] & 0x80 else 0)
        elif data[at] == 0x21:
            at += 2
        else:
            parts.append(Part(b"alone", data[at : at + 1]))
            at += 1
            continue
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1
        parts.append(Part(data[begin : begin + 1], data[begin:at]))
    return parts


def _bmp_apart(data: bytes) -> list[Part]:
    begin, size = struct.unpack_from("<II", data.ljust(18, b"\0"), 10)
    end = min(14 + min(size, 200), len(data))
    return [
        Part(b"file", data[:14]), Part(b"head", data[14:end]), Part(b"colors", data[end : max(begin, end)]),
        Part(b"pixels", data[max(begin, end) :]),
    ]  # fmt: skip


def _joined(parts: Sequence[Part]) -> bytes:
    return b"".join(body for _, body in parts)


APART: dict[str, Callable[[bytes], list[Part]]] = {
    "PNG": _png_apart, "JPEG": _jpeg_apart, "WEBP": _webp_apart, "GIF": _gif_apart, "BMP": _bmp_apart,
}  # fmt: skip
TOGETHER: dict[str, Callable[[Sequence[Part]], bytes]] = {
    "PNG": _png_together, "JPEG": _jpeg_together, "WEBP": _webp_together, "GIF": _joined, "BMP": _joined,
}  # fmt: skip
MAGIC = {b"\x89P": "PNG", b"\xff\xd8": "JPEG", b"RI": "WEBP", b"GI": "GIF", b"BM": "BMP"}


@functools.cache
def nasty(kind: str) -> list[bytes]:
    """Small hostile files of a format, where they are at hand."""
    found = [path.read_bytes() for path in sorted(NASTY.iterdir()) if path.is_file()] if NASTY.is_dir() else []
    return [data for data in found if MAGIC.get(data[:2]) == kind and len(data) < LARGEST_BYTES]


def _spliced_png(randomness: random.Random) -> Part:
    """A chunk that shapes colours, transparency, turning or animation."""
    short = struct.pack(">H", randomness.choice((0, 1, 3, 15, 128, 255, 65_535)))
    return randomness.choice((
        Part(b"gAMA", struct.pack(">I", randomness.choice((0, 1, 10_000, 45_455, 100_000, 2**31, 2**32 - 1)))),
        Part(b"sRGB", bytes([randomness.choice((0, 3, 4))])),
        Part(b"cHRM", struct.pack(">8I", *(randomness.choice((31_270, 32_900, 64_000, 33_000, 0)) for _ in range(8)))),
        Part(b"cICP", bytes((randomness.choice((1, 9, 12)), randomness.choice((1, 8, 13, 16)), 0, 1))),
        Part(b"tRNS", short * randomness.choice((1, 3))),
        Part(b"tRNS", randomness.randbytes(randomness.choice((1, 2, 4, 16)))),
        Part(b"iCCP", b"x\0\0" + zlib.compress(_profile(randomness))),
        Part(b"eXIf", _exif(randomness)[6:]),
        Part(b"bKGD", short * 3),
        Part(b"sBIT", bytes((randomness.choice(INTERESTING),)) * 3),
        Part(b"acTL", struct.pack(">II", randomness.choice((0, 1, 2)), 0)),
        Part(b"pHYs", struct.pack(">IIB", randomness.choice((0, 1, 1000)), randomness.choice((1, 2000)), 1)),
    ))  # fmt: skip


def _spliced_jpeg(randomness: random.Random) -> Part:
    color = randomness.choice((0, 1, 2, 3))
    return randomness.choice((
        Part(b"\xff\xee", b"Adobe\0\x64\0\0\0\0" + bytes((color,))),
        Part(b"\xff\xe0", b"JFIF\0\1\1" + struct.pack(">BHHH", color, 1, randomness.choice((1, 2)), 0)),
        Part(b"\xff\xe1", _exif(randomness)),
        Part(b"\xff\xe2", b"ICC_PROFILE\0\1\1" + _profile(randomness)),
        Part(b"\xff\xdd", struct.pack(">H", randomness.choice((0, 1, 4, 300)))),
    ))  # fmt: skip


def _spliced_webp(randomness: random.Random) -> Part:
    flags = randomness.choice((0, 0x02, 0x08, 0x10, 0x12, 0x20, 0x30, randomness.randrange(64)))
    size = b"".join(randomness.choice((31, 39, 63, 119)).to_bytes(3, "little") for _ in range(2))
    other = [part for part in _webp_apart(made("WEBP", randomness)) if part.kind != b"VP8X"]
    return randomness.choice((
        Part(b"VP8X", bytes((flags, 0, 0, 0)) + size),
        Part(b"ICCP", _profile(randomness)),
        Part(b"EXIF", _exif(randomness)[6:]),
        Part(b"ALPH", b"\0" + randomness.randbytes(64 * 48)),
        Part(b"ANIM", bytes(6)),
        *other,
    ))  # fmt: skip


def _spliced_gif(randomness: random.Random) -> Part:
    flags, index = randomness.choice((0, 1, 4, 5, 8, 9, 12, 13)), randomness.choice((0, 1, 2, 255))
    return randomness.choice((
        Part(b"!", b"!\xf9\4" + bytes((flags, 0, 0, index, 0))),
        Part(b"!", b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0"),
        Part(b"!", b"!\xfe\4,,,,\0"),
        Part(b"!", b"!\x01\x0c" + bytes(12) + b"\2hi\0"),
    ))  # fmt: skip


def _spliced_bmp(randomness: random.Random) -> Part:
    return Part(b"colors", randomness.randbytes(randomness.choice((4, 8, 64, 1024))))


_SPLICES = {
    "PNG": _spliced_png, "JPEG": _spliced_jpeg, "WEBP": _spliced_webp, "GIF": _spliced_gif, "BMP": _spliced_bmp,
}  # fmt: skip


def mutant(seed: int) -> tuple[str, bytes]:
    """A format, and a file of it that is wrong somewhere; always the same for the same seed."""
    randomness = random.Random(seed)
    kind = randomness.choice(tuple(APART))
    data = randomness.choice(nasty(kind)) if nasty(kind) and randomness.random() < 0.3 else made(kind, randomness)
    parts = APART[kind](data)
    for _ in range(randomness.choice((0, 1, 1, 1, 2, 3))):
        parts = _changed(parts, kind, randomness)
    data = TOGETHER[kind](parts)
    return kind, data[: randomness.randrange(len(data) + 1)] if randomness.random() < 0.02 else data


def _changed(parts: list[Part], kind: str, randomness: random.Random) -> list[Part]:
    parts = list(parts)
    at, to = (randomness.randrange(len(parts) + 1) for _ in range(2))
    part = parts[min(at, len(parts) - 1)] if parts else Part(b"", b"")
    match randomness.randrange(10):
        case 0:
            del parts[at : at + 1]
        case 1:
            parts.insert(to, part)
        case 2:
            del parts[at : at + 1]
            parts.insert(to, part)
        case 3:
            other = APART[kind](made(kind, randomness))
            parts.insert(to, randomness.choice(other))
        case 4:
            parts.insert(min(to, randomness.choice((2, 4, 99))), _SPLICES[kind](randomness))
        case 5:
            cut = randomness.randrange(len(part.body) + 1)
            parts[at : at + 1] = [
                part._replace(body=part.body[:cut] + part.body[cut:][randomness.choice((1, 2, 99)) :])
            ]
        case 6:
            parts[at : at + 1] = [part._replace(body=part.body + randomness.randbytes(randomness.choice((1, 2, 8))))]
        case _:
            parts[at : at + 1] = [part._replace(body=_bytes_changed(part.body, kind, part.kind, randomness))]
    return parts


def _bytes_changed(body: bytes, kind: str, name: bytes, randomness: random.Random) -> bytes:
    if not body:
        return body
    inflated = kind == "PNG" and name == b"IDAT"
    try:
        plain = bytearray(zlib.decompress(body) if inflated else body)
    except zlib.error:
        plain, inflated = bytearray(body), False
    for _ in range(randomness.choice((1, 1, 2, 4))):
        near = min(int(randomness.expovariate(1 / 8)), len(plain) - 1)
        at = randomness.choice((near, randomness.randrange(len(plain)))) if plain else 0
        if plain:
            plain[at] = randomness.choice((randomness.choice(INTERESTING), plain[at] ^ 1 << randomness.randrange(8)))
    return zlib.compress(bytes(plain)) if inflated else bytes(plain)
