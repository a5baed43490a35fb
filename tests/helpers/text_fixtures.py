"""One tiny encoder, some pictures and a server that fails on purpose, for the tests of this folder."""

import json
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers import annotated_texts, tiny_encoders
from helpers.tiny_vlm import save_tiny_vlm
from PIL import Image

from tavq_plugin.text import TextEncoder

GOOD = "A small red boat lies on the sand beside two wooden houses under a grey sky."


@pytest.fixture(scope="session")
def annotated():
    """Hand-annotated descriptions."""
    return annotated_texts


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    """A saved BERT with 24 positions and width 32."""
    return tiny_encoders.save_tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory):
    """A function: family → folder of a tiny text model."""
    folder = tmp_path_factory.mktemp("towers")
    return cache(lambda name: tiny_encoders.save_tiny(name, folder / name))


@pytest.fixture
def encoder(bert_folder):
    """A fresh encoder on it."""
    return TextEncoder.from_pretrained(bert_folder)


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory):
    """A function: kind → folder of a tiny vision-language model."""
    folder = tmp_path_factory.mktemp("vlm")
    return cache(lambda kind: save_tiny_vlm(kind, folder / kind))


@pytest.fixture
def decompression_limit(monkeypatch):
    """A function that sets Pillow's limit of pixels, a setting of that library, for one test."""
    return lambda pixels: monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, colour in enumerate(("red", "blue", "green", "white", "black")):
        Image.new("RGB", (40, 30 + i), colour).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def server():
    """A real HTTP server; `script` says how it answers, one step a request, the last for ever.

    A step is a text, a status, the bytes of an answer, a word ("slow", "cut", "redirect"), a dict with any of "status",
    "headers", "seconds" (to wait), "json" (the whole answer), "choice" and "usage", or a function: request → step.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state["now"] += 1
                state["most"] = max(state["most"], state["now"])
                seen.append((body, dict(self.headers)))
                step = script[min(len(seen), len(script)) - 1]
            try:
                self._answer(step(body) if callable(step) else step)
            finally:
                with lock:
                    state["now"] -= 1

        def _answer(self, step):
            status, content, headers = 200, b"", {}
            if step == "slow":
                time.sleep(0.6)
            elif step == "cut":
                self.close_connection = True
                return
            elif step == "redirect":
                status, headers = 302, {"Location": f"http://localhost:{self.server.server_port}/elsewhere"}
            elif isinstance(step, int):
                status, content, headers = step, http.error_body, {"Retry-After": "0"} if step == 429 else {}
            elif isinstance(step, bytes):
                content = step
            elif isinstance(step, dict):
                time.sleep(step.get("seconds", 0))
                choice = {"message": {"content": GOOD}, "finish_reason": "stop", **step.get("choice", {})}
                whole = {"choices": [choice], **({"usage": step["usage"]} if "usage" in step else {})}
                status, headers = step.get("status", 200), step.get("headers", {})
                content = json.dumps(step.get("json", whole)).encode()
            else:
                content = json.dumps({"choices": [{"message": {"content": step}}]}).encode()
                time.sleep(0.02)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            http.redirected.append(dict(self.headers))
            self.send_error(404)

        def log_message(self, *_):
            pass

    script, seen, state, lock = [GOOD], [], {"now": 0, "most": 0}, threading.Lock()
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.handle_error = lambda *_: None  # a client that gave up
    threading.Thread(target=http.serve_forever, daemon=True).start()
    http.script, http.seen, http.state, http.error_body, http.redirected = script, seen, state, b"no", []
    http.url = f"http://127.0.0.1:{http.server_port}/v1"
    yield http
    http.shutdown()
    http.server_close()
