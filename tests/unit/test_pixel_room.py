"""Large pictures wait for each other; small ones wait for nobody."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from classifleet.worker import decode as decoder
from classifleet.worker import pixel_room
from classifleet.worker.decode import DecodeLimits, decode, prepare
from classifleet.worker.pixel_room import SMALL_PIXELS, PixelRoom
from tests.models_support import encode, noise, spec
from tests.support import wait_until

LARGE = 10 * SMALL_PIXELS
MOST = 2 * LARGE


def waiting(room: PixelRoom) -> int:
    return len(room._freed._waiters)


class Turns:
    """Turns in threads, each of which lasts until it is told to end."""

    def __init__(self, pool: ThreadPoolExecutor, room: PixelRoom) -> None:
        self.held: list[int] = []
        self._pool, self._room = pool, room

    def begin(self, pixels: int) -> threading.Event:
        end = threading.Event()
        self._pool.submit(self._run, pixels, end)
        return end

    def _run(self, pixels: int, end: threading.Event) -> None:
        with self._room.turn(MOST) as take:
            take(pixels)
            self.held.append(pixels)
            end.wait(30)
            self.held.remove(pixels)


def test_turns():
    room = PixelRoom()
    with ThreadPoolExecutor(8) as pool:
        turns = Turns(pool, room)
        first, second = turns.begin(LARGE), turns.begin(LARGE)
        wait_until(lambda: len(turns.held) == 2, "two large ones")
        third = turns.begin(LARGE + 1)
        wait_until(lambda: waiting(room) == 1, "the third to wait")
        ends = [turns.begin(SMALL_PIXELS) for _ in range(3)]
        wait_until(lambda: len(turns.held) == 5, "the small ones beside them")
        first.set()
        wait_until(lambda: len(turns.held) == 4, "the first to end")
        assert LARGE + 1 not in turns.held
        second.set()
        wait_until(lambda: LARGE + 1 in turns.held, "the third to begin")
        for end in (third, *ends):
            end.set()
    assert room.taken == 0


def test_one_that_is_larger_than_all_room_has_it_alone():
    room = PixelRoom()
    with room.turn(LARGE) as take:
        take(2 * LARGE)
        take(2 * LARGE)
        assert room.taken == 2 * LARGE
    assert room.taken == 0


def test_a_picture_that_hangs_stops_nobody_for_ever():
    room = PixelRoom(patience_seconds=0.05)
    with room.turn(MOST) as take, room.turn(MOST) as other:
        take(MOST)
        other(LARGE)
        assert room.taken == MOST + LARGE


def test_a_picture_that_hangs_does_not_keep_its_room():
    room = PixelRoom(hung_seconds=0.0)
    with room.turn(MOST) as take:
        take(MOST)
        assert room.taken == 0


def test_a_failed_decode_gives_its_room_back():
    room = PixelRoom()
    with contextlib.suppress(OSError), room.turn(MOST) as take:
        take(LARGE)
        raise OSError("broken")
    assert room.taken == 0


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "JPEG"])
def test_two_of_the_largest_pictures_are_decoded_at_one_time(kind, monkeypatch):
    monkeypatch.setattr(pixel_room, "SMALL_PIXELS", 0)
    monkeypatch.setattr(decoder, "JPEG_SHARE", 1)
    monkeypatch.setattr(decoder, "_room", room := PixelRoom())
    data, limits = encode(noise(60, 40), kind), DecodeLimits(max_pixels=60 * 40)
    inside, most, go = [], [], threading.Event()
    correction = decoder._loaded

    def held(*arguments):
        inside.append(None)
        most.append(len(inside))
        go.wait(30)
        inside.pop()
        return correction(*arguments)

    monkeypatch.setattr(decoder, "_loaded", held)
    with ThreadPoolExecutor(4) as pool:
        decoded = [pool.submit(decode, data, limits=limits) for _ in range(4)]
        wait_until(lambda: waiting(room) == 2 and len(inside) == 2, "two inside and two at the door")
        go.set()
        assert [each.result().info["width"] for each in decoded] == [60] * 4
    assert max(most) == 2


@pytest.mark.parametrize(("options", "counted"), [({}, 0), ({"progressive": True}, 18_000_000)])
def test_an_ordinary_photo_is_not_counted(options, counted, monkeypatch):
    """One of 12 megapixels; of a progressive one of 36, two parts count."""
    taken = []
    monkeypatch.setattr(decoder, "_room", room := PixelRoom())
    preprocess = decoder.preprocess
    monkeypatch.setattr(decoder, "preprocess", lambda *all_: (taken.append(room.taken), preprocess(*all_))[1])
    size = (8000, 4500) if counted else (4000, 3000)
    target = spec(resize="shortest_edge_crop", resize_size=256, crop_size=[224, 224])
    prepare(encode(Image.new("RGB", size), "JPEG", **options), {"": target}, DecodeLimits())
    assert taken == [counted]
