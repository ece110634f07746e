"""The picture that a person sees is the one that is classified: broken files, in real browsers and here."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.fuzz.browser import BROWSERS, browser, installed
from tests.fuzz.made import picture
from tests.fuzz.seen import AT_A_TIME, difference, differing
from tests.fuzz.shapes import mutant

FILES = 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", BROWSERS)
def test_what_both_take_looks_the_same(name):
    if installed(name) is None:
        pytest.skip(f"needs {name}")
    files = [mutant(seed)[1] for seed in range(FILES)]
    with browser(name) as shower:
        found = [words for at in range(0, FILES, AT_A_TIME) for words in differing(shower, files[at : at + AT_A_TIME])]
    assert sum(words is not None for words in found) > FILES / 4
    assert {seed: words for seed, words in enumerate(found) if words} == {}


def test_another_picture_is_noticed():
    """So that the test above can fail."""
    seen = np.asarray(picture(random.Random(1)))
    assert not difference(seen, seen)
    assert not difference(seen, np.clip(seen.astype(int) + 10, 0, 255).astype(np.uint8))
    for other in (seen[::-1], seen[..., ::-1], 255 - seen, np.full_like(seen, 128), seen.transpose(1, 0, 2)):
        assert difference(seen, other)


def test_a_seed_is_a_file():
    assert mutant(7) == mutant(7)
    assert len({mutant(seed)[1] for seed in range(100)}) > 90
