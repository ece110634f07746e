"""The decoder under atheris (libFuzzer), guided by the coverage of our modules and Pillow's Python.

.venv/bin/python -m tests.fuzz.atheris_decode -max_total_time=600 -rss_limit_mb=3000
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "classifleet.worker"]):
    from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, WebPImagePlugin

    from classifleet.worker import decode

from tests.fuzz.test_decode_fuzz import CORPUS, LIMITS, check

INSTRUMENTED = (
    BmpImagePlugin, GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, WebPImagePlugin, decode,
)  # fmt: skip


def one(data: bytes) -> None:
    """One input, in both modes."""
    for limits in LIMITS:
        check(data, limits)


def main() -> None:
    """Run with the real files as seeds."""
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(CORPUS):
            (Path(folder) / str(number)).write_bytes(data)
        atheris.Setup([*sys.argv, "-max_len=200000", "-timeout=20", folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
