"""A real browser that says what a person sees of a picture."""

from __future__ import annotations

import http.server
import itertools
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PAGE = b"""<!doctype html><script>
const canvas = document.createElement("canvas");
const pen = canvas.getContext("2d", {willReadFrequently: true});
async function show(name) {
  const image = new Image();
  const there = new Promise(done => { image.onload = () => done(true); image.onerror = () => done(false); });
  image.src = "/file/" + name;
  let body = null, size = "0 0";
  const late = new Promise(done => setTimeout(() => done(false), 3000));
  const whole = await Promise.race([image.decode().then(() => true, () => false), late]);
  const seen = await there && (whole || !/Firefox/.test(navigator.userAgent)); // where it is otherwise blank
  if (seen && image.naturalWidth * image.naturalHeight <= 4e6) {
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    pen.fillStyle = "white";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(image, 0, 0);
    body = pen.getImageData(0, 0, canvas.width, canvas.height).data;
    size = canvas.width + " " + canvas.height;
  }
  await fetch("/shown/" + name, {method: "POST", body, headers: {"X-Size": size}});
}
(async () => {
  for (;;) {
    const names = await (await fetch("/next")).json();
    await Promise.all(names.map(show));
  }
})();
</script>"""
PATIENCE_SECONDS = 60


class Browser:
    """Hands out files, and takes their pixels."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._numbers = itertools.count()
        self._wanted: queue.Queue[list[str]] = queue.Queue()
        self._shown: queue.Queue[tuple[str, NDArray[np.uint8] | None]] = queue.Queue()

    def show(self, files: Sequence[bytes]) -> list[NDArray[np.uint8] | None]:
        """uint8 [h, w, 3] on white of each file, or None for those that are not shown (or of over 4 megapixels)."""
        self._files = {str(next(self._numbers)): data for data in files}  # it would show an old name's picture again
        self._wanted.put(list(self._files))
        found = dict(self._shown.get(timeout=PATIENCE_SECONDS) for _ in files)
        return [found[name] for name in self._files]

    def answer(self, path: str) -> bytes | None:
        """What is at a path."""
        match path.strip("/").split("/"):
            case [""]:
                return PAGE
            case ["next"]:
                return str(self._wanted.get()).replace("'", '"').encode()
            case ["file", name]:
                return self._files[name]
        return None

    def take(self, name: str, size: str, rgba: bytes) -> None:
        """A picture's pixels, as shown."""
        width, height = map(int, size.split())
        rgb = np.frombuffer(rgba, np.uint8).reshape(height, width, 4)[..., :3] if rgba else None
        self._shown.put((name, rgb))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    browser: Browser

    def do_GET(self) -> None:
        body = self.browser.answer(self.path)
        self.send_response(HTTPStatus.OK if body is not None else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Length", str(len(body or b"")))
        self.send_header("Cache-Control", "no-store")
        if self.path == "/":
            self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body or b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.browser.take(self.path.rpartition("/")[2], self.headers["X-Size"], body)
        self.send_response(HTTPStatus.NO_CONTENT)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def _chromium(program: str, home: Path, address: str) -> list[str]:
    return [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--force-color-profile=srgb",
        "--disable-background-networking", "--no-first-run", f"--user-data-dir={home}", address,
    ]  # fmt: skip


def _firefox(program: str, home: Path, address: str) -> list[str]:
    (home / "user.js").write_text(
        'user_pref("gfx.color_management.force_srgb", true);\nuser_pref("network.dns.disabled", true);\n'
    )
    return [program, "--headless", "--no-remote", "--profile", str(home), address]


BROWSERS: Mapping[str, tuple[tuple[str, ...], Callable[[str, Path, str], list[str]]]] = {
    "chromium": (("chromium", "chromium-browser", "google-chrome"), _chromium),
    "firefox": (("firefox-esr", "firefox"), _firefox),
}
"""Names of the program, and how it is started."""


def installed(name: str) -> str | None:
    """The program, if there is one."""
    return next(filter(None, map(shutil.which, BROWSERS[name][0])), None)


@contextmanager
def browser(name: str = "chromium") -> Iterator[Browser]:
    """One that runs, without a window, and sees nothing but a port of its own on loopback."""
    program = installed(name)
    if program is None:
        raise SystemExit(f"no {name} on PATH: apt-get install {BROWSERS[name][0][0]}")
    served = Browser()
    handler = type("Handler", (_Handler,), {"browser": served})
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
    ):
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = BROWSERS[name][1](program, Path(home), f"http://127.0.0.1:{server.server_address[1]}/")
        process = subprocess.Popen(
            command, env=os.environ | {"HOME": home}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield served
        finally:
            process.terminate()
            process.wait()
            server.shutdown()
