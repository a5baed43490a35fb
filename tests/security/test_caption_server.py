"""A caption server that would like the key, or sends it back, gets and spreads nothing."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tavq_plugin.preprocessing.caption import caption_images
from tavq_plugin.preprocessing.server_captioner import ServerCaptioner

KEY = "sk/very+secret/0123456789"
FORMS = (
    KEY,
    KEY.replace("/", "\\/"),
    KEY.replace("/", "%2F").replace("+", "%2B"),
    base64.b64encode(KEY.encode()).decode(),
)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def asking(server, **settings):
    return ServerCaptioner(server.url, "m", first_wait=0.01, timeout=2, retries=0, concurrency=1, **settings)


@pytest.mark.parametrize("form", FORMS)
def test_a_key_that_comes_back_reaches_no_text_error_or_file(server, pictures, tmp_path, form):
    good = "A red boat lies on the sand beside two houses under a grey sky, with the sign"
    server.error_body = f'{{"error": "bad key {form}"}}'.encode()
    no_completion = json.dumps({"echo": "x"}).encode()[:-1] + f', "key": "{form}"}}'.encode()
    server.script[:] = [f"{good} {form}.", 400, no_completion, json.dumps([form]).encode(), 400]
    done = caption_images(pictures, tmp_path / "c.jsonl", asking(server), batch=5, progress=False)
    assert (done.written, done.rejected) == (1, 4)
    written = "".join(file.read_text() for file in tmp_path.glob("*.jsonl"))
    assert good in written and written.count("[key]") >= 4
    assert not [part for part in (*FORMS, "very+secret", "very%2B") if part in written]


@pytest.mark.parametrize("status", [401, 500])
def test_a_key_that_comes_back_stays_out_of_what_is_raised(server, pictures, tmp_path, status):
    server.script[:], server.error_body = [status], f"no such key: {KEY}".encode()
    with pytest.raises(OSError, match=r"\[key\]") as raised:
        caption_images(pictures, tmp_path / "c.jsonl", asking(server), progress=False)
    error = raised.value
    assert KEY not in str(error) and (error.__cause__ is None or KEY not in str(error.__cause__))


class Raw(BaseHTTPRequestHandler):
    """Answers with a status line that holds the key."""

    def do_POST(self):
        self.wfile.write(b"HTTP/1.0 401 " + self.headers["Authorization"].encode() + b"\r\n\r\n")

    def log_message(self, *_):
        pass


def test_a_key_in_the_status_line_stays_out_of_what_is_raised(pictures, tmp_path):
    http = ThreadingHTTPServer(("127.0.0.1", 0), Raw)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    http.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        with pytest.raises(PermissionError) as raised:
            caption_images(pictures, tmp_path / "c.jsonl", asking(http), progress=False)
    finally:
        http.shutdown()
        http.server_close()
    assert KEY not in str(raised.value) and raised.value.__cause__ is None


def test_a_redirect_to_another_host_gets_no_request(server, pictures, tmp_path):
    server.script[:] = ["redirect"]
    with pytest.raises(PermissionError, match="HTTP 302"):
        caption_images(pictures, tmp_path / "c.jsonl", asking(server), progress=False)
    assert server.redirected == [] and server.seen


@pytest.mark.parametrize("url", ["http://example.com/v1", "http://10.0.0.1:8000/v1", "http://localhost.example.com/v1"])
def test_plain_http_to_another_machine_needs_a_word(url):
    with pytest.raises(ValueError, match="--insecure"):
        ServerCaptioner(url, "m")
    assert ServerCaptioner(url, "m", insecure=True).url.startswith(url)


@pytest.mark.parametrize(
    "url", ["https://example.com/v1", "http://localhost:1/v1", "http://[::1]:1/v1", "http://127.0.0.9/v1"]
)
def test_https_and_this_machine_need_none(url):
    assert ServerCaptioner(url, "m").url.startswith(url)


def test_a_password_in_the_address_is_refused_and_not_shown():
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as refused:
        ServerCaptioner("https://ann:pw-of-ann@example.com/v1", "m")
    assert "pw-of-ann" not in str(refused.value)


def test_a_line_end_after_the_key_does_not_show_it(server, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    done = caption_images(pictures, tmp_path / "c.jsonl", asking(server), progress=False)
    assert done.written == 5 and server.seen[0][1]["Authorization"] == f"Bearer {KEY}"
