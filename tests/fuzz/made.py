"""Sound files of each format, in any of the ways there are to write one."""

from __future__ import annotations

import random
import struct
import zlib

from PIL import Image, ImageCms, ImageDraw

from tests.decode_support import chunk
from tests.models_support import encode


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


def any_profile(randomness: random.Random) -> bytes:
    """A profile of one of three spaces, as of no date, so that the same seed makes the same file on another day."""
    space = randomness.choice(("sRGB", "XYZ", "LAB"))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]
    return profile[:24] + bytes(12) + profile[36:]


def any_exif(randomness: random.Random) -> bytes:
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
        options["icc_profile"] = any_profile(randomness)
    if randomness.random() < 0.3 and kind in ("JPEG", "PNG", "WEBP"):
        options["exif"] = any_exif(randomness)
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
        parts = [(b"PLTE", bytes(image.getpalette() or [])[: 3 << depth])]
    else:
        image = (_clear(image) if kind in (4, 6) else image).convert(channels)
    if randomness.random() < 0.4 and kind in (0, 2, 3):
        first = bytes(image.crop((0, 0, 1, 1)).tobytes())
        key = {3: bytes(randomness.randrange(256) for _ in range(1 << min(depth, 4)))}.get(
            kind, b"".join(_sample(value, depth).to_bytes(2) for value in first)
        )
        parts.append((b"tRNS", key))
    interlaced = randomness.randrange(2)
    data = b"".join(
        _png_pass(image, depth, indexed=kind == 3, places=places)
        for places in (_PNG_PASSES if interlaced else ((0, 0, 1, 1),))
    )
    head = struct.pack(">IIBBBBB", *image.size, depth, kind, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in [(b"IHDR", head), *parts, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    )


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
