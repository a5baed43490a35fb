"""The page of a run from 127.0.0.1, with images and texts of the user's: what `tavq explore --serve` does."""

from __future__ import annotations

import base64
import binascii
import errno
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any, cast

from tavq_plugin.data.images import open_image, pixel_limit
from tavq_plugin.pixels import to_float
from tavq_plugin.side_effects import eval_without_trace
from tavq_plugin.text.splitter import Splitter
from tavq_plugin.use.explore.page_plans import image_plan
from tavq_plugin.use.explore.sprites import packed, sprite
from tavq_plugin.use.explore.write_page import page_html, page_policy
from tavq_plugin.use.run import Run

HERE = "127.0.0.1"
MOST_BYTES = 30_000_000  # of a request: an image file of 20 MB, in base64, and a text
MOST_PIXELS = 2**25  # of an image
MOST_LETTERS = 5000  # of a text
PATIENCE = 30  # seconds that a client may be silent
JSON, HTML = "application/json", "text/html; charset=utf-8"


class LiveServer(ThreadingHTTPServer):
    """A server that listens on 127.0.0.1 alone; it answers once `show` has told it what to show.

    Raises OSError, with the mend, if the port is in use or not allowed.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        try:
            super().__init__((HERE, port), _Handler)
        except (OSError, OverflowError) as error:
            in_use = getattr(error, "errno", None) == errno.EADDRINUSE
            why = "is in use by another program" if in_use else f"cannot be listened on ({error})"
            raise OSError(f"port {port} {why}: give another one by --port, or --port 0 for any that is free") from error
        self.page, self.run = b"", cast("Run | None", None)
        self.busy = Lock()  # one text at a time: the run's hooks know one pass

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HERE}:{self.server_port}/"

    def show(self, content: dict[str, Any], run: Run) -> None:
        """Serve the page of this content, from `page_content`, and ground texts by this run.

        Raises ValueError if the run has no plans.
        """
        if content["no_plans"]:
            raise ValueError(f"--serve places texts in images, and {run.folder} cannot: {content['no_plans']}")
        self.page, self.run = page_html(content, live=True).encode(), run

    def is_ours(self, host: str | None) -> bool:
        """Whether a Host header names this server: a page of elsewhere, whose name leads here, must not read it."""
        names = (HERE, "localhost")
        return host in [f"{name}:{self.server_port}" for name in names] or (self.server_port == 80 and host in names)


class Refused(ValueError):
    """A request that is not answered, with the status that says so."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def live_content(run: Run, file: bytes, text: str) -> dict[str, Any]:
    """An image file and a text as a page shows them: sprite, codes, and the plans of `Run.ground`.

    Raises ValueError if it is no image, has more than `MOST_PIXELS` pixels, or the text has no words.
    """
    picture = open_image(file, max_pixels=min(pixel_limit(), MOST_PIXELS))
    width, height = picture.size
    found, units, side = run.ground(picture, text), Splitter()(text), run.recipe.resolution
    with eval_without_trace(run.tokenizer):
        device = next(run.tokenizer.parameters()).device
        levels = run.tokenizer.encode(to_float(found.image[None].to(device))).levels
    sized = ""
    if (width, height) != (side, side):
        sized = f"Your image has {width} × {height} pixels; it was resized and its centre cropped to {side} × {side}."
    return {
        "text": text,
        "sprite": sprite(found.image[None]),
        "sized": sized,
        "codes": [packed(level.indices[0]) for level in levels],
        "plans": [image_plan(level.plan, level.units, units[level.granularity]) for level in found.levels],
    }


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    timeout = PATIENCE
    server_version, sys_version = "tavq", ""

    def do_GET(self) -> None:
        self._answer_with(self._page)

    def do_POST(self) -> None:
        self._answer_with(self._grounded)

    def _answer_with(self, answer: Callable[[], tuple[str, bytes]]) -> None:
        try:
            if not self.server.is_ours(self.headers.get("Host")):
                raise Refused(403, f"this server answers to {self.server.address} alone")
            kind, body = answer()
            status = 200
        except Refused as refused:
            status, kind, body = refused.status, JSON, _as_json({"error": str(refused)})
        except (ValueError, TypeError, FloatingPointError, OSError, RuntimeError, MemoryError) as error:
            status, kind, body = 400, JSON, _as_json({"error": f"{error}"})
        self.send_response(status)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store",
            "Content-Security-Policy": f"{page_policy(live=True)}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _page(self) -> tuple[str, bytes]:
        if self.path != "/":
            raise Refused(404, "there is only the page, at /")
        return HTML, self.server.page

    def _grounded(self) -> tuple[str, bytes]:
        if self.path != "/ground":
            raise Refused(404, "texts go to /ground")
        origin = self.headers.get("Origin")
        if origin is not None and not (origin.startswith("http://") and self.server.is_ours(origin[len("http://") :])):
            raise Refused(403, f"a page of {origin[:100]} may not ask this server")
        if self.headers.get_content_type() != JSON:  # a form of another page cannot send this type unasked
            raise Refused(415, f"give {JSON}: an object with text, and image in base64")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(411, "give the number of bytes as Content-Length")
        if len(length) > 12 or int(length) > MOST_BYTES:
            raise Refused(413, f"{length[:12]} bytes are more than {MOST_BYTES:,}: shrink the image")
        file, text = _image_and_text(self.rfile.read(int(length)))
        with self.server.busy:
            assert self.server.run is not None
            return JSON, _as_json(live_content(self.server.run, file, text))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what a user looks at is not written down."""


def _image_and_text(body: bytes) -> tuple[bytes, str]:
    try:
        given = json.loads(body)
        text, image = given["text"], base64.b64decode(given["image"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise Refused(
            400, f"the request is no object with text, and image in base64 ({type(error).__name__})"
        ) from error
    if not isinstance(text, str) or len(text) > MOST_LETTERS:
        raise Refused(400, f"text: give a string of at most {MOST_LETTERS} characters")
    return image, text


def _as_json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode()
