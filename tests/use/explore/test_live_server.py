"""`tavq explore --serve`: the user's own images and texts, and what the server refuses."""

import base64
import http.client
import json
import socket
import threading
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.use.explore.live_server import LiveServer

TEXT = "A red circle lies beside two blue squares. <b>A star</b> is green."


@pytest.fixture(scope="module")
def live(explored):
    """A server that shows the first run."""
    server = LiveServer(0)
    server.show(explored.content, explored.runs[0])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A file of 24 × 20 pixels."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    file = tmp_path_factory.mktemp("photos") / "own.png"
    Image.fromarray(pixels).save(file)
    return file


def ask(server, method="POST", path="/ground", body=b"", **headers):
    """Status, headers and body of an answer; a header of None is left out."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    given = {"Host": f"127.0.0.1:{server.server_port}", "Content-Type": "application/json"}
    given |= {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host=True)
    for name, value in given.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    found = SimpleNamespace(status=answer.status, headers=answer.headers, body=answer.read())
    connection.close()
    return found


def grounding_request(image: bytes, text=TEXT):
    return json.dumps({"text": text, "image": base64.b64encode(image).decode()}).encode()


def test_an_own_image_and_text_light_up_as_the_run_grounds_them(visit, live, explored, photo):
    page = visit("live/1", url=live.address)
    page.click("#own button")
    assert page.inner_text("[role=status]") == "Give an image and a text."
    page.set_input_files("#own-image", photo)
    page.fill("#own-text", TEXT)
    page.click("#own button")
    page.wait_for_selector("#own-result #units")
    assert "24 × 20 pixels" in page.inner_text("#own-result") and "<b>A star</b>" in page.inner_text("#units")
    wanted = explored.runs[0].ground(photo, TEXT)
    for level in wanted.levels:
        page.keyboard.press("Escape")
        page.click(f"#own-result button[data-level='{level.level}']")
        page.wait_for_selector(f"main[data-route='#live/{level.level}'] #units")
        for number in range(len(level.units)):
            page.focus(f"#units button[data-unit='{number}']")
            lit = torch.tensor(page.evaluate("[...shown.heat]"), dtype=torch.float64).view(level.plan.shape[1:])
            plan = level.plan[number].double()
            assert (lit - plan).abs().max() < 1e-3 * plan.max(), level.units[number]


def test_what_the_server_refuses_is_told_on_the_page(visit, live, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    page = visit("live/1", url=live.address)
    page.set_input_files("#own-image", tmp_path / "broken.png")
    page.fill("#own-text", TEXT)
    page.click("#own button")
    page.wait_for_selector("text=not an image")
    assert not page.locator("#own-result #units").count()
    visit.forget()  # Chromium writes the status 400 to the console


def test_the_page_has_the_policy_as_a_header_too(live):
    found = ask(live, "GET", "/")
    assert found.status == 200 and b"An image and a text" in found.body
    policy = found.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert policy.startswith(found.body.decode().split('Policy" content="')[1].split('"')[0].replace("&#39;", "'"))
    assert found.headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in found.headers


def test_it_listens_on_this_machine_alone(live):
    assert live.server_address[0] == "127.0.0.1"
    with socket.socket() as other:
        other.settimeout(2)
        assert other.connect_ex(("127.0.0.2", live.server_port)) != 0


def huge_picture() -> bytes:
    """A small file of 36 million pixels."""
    file = BytesIO()
    Image.new("1", (6000, 6000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("status", "said", "request_of"),
    [
        (403, "alone", lambda live: {"Host": "evil.example"}),
        (403, "alone", lambda live: {"Host": None}),
        (403, "alone", lambda live: {"Host": f"evil.example:{live.server_port}"}),
        (403, "may not ask", lambda live: {"Origin": "http://evil.example"}),
        (403, "may not ask", lambda live: {"Origin": "null"}),
        (415, "base64", lambda live: {"Content_Type": "text/plain"}),
        (411, "Content-Length", lambda live: {"Content_Length": None}),
        (411, "Content-Length", lambda live: {"Content_Length": "-1"}),
        (413, "shrink", lambda live: {"Content_Length": "30000001"}),
        (413, "shrink", lambda live: {"Content_Length": "9" * 5000}),
        (404, "/ground", lambda live: {"path": "/../etc/passwd"}),
        (400, "no object", lambda live: {"body": b"[" * 100_000}),
        (400, "no object", lambda live: {"body": b'{"text": "a"}'}),
        (400, "no object", lambda live: {"body": b'{"text": "a", "image": "%"}'}),
        (400, "at most", lambda live: {"body": grounding_request(b"", "a" * 5001)}),
        (400, "at most", lambda live: {"body": grounding_request(b"", 7)}),
        (400, "not an image", lambda live: {"body": grounding_request(b"GIF89a")}),
        (400, "more pixels", lambda live: {"body": grounding_request(huge_picture())}),
    ],
)
def test_requests_that_are_refused(live, status, said, request_of):
    found = ask(live, **request_of(live))
    assert (found.status, list(json.loads(found.body))) == (status, ["error"])
    assert said in json.loads(found.body)["error"]
    assert ask(live, "GET", "/").status == 200  # and it lives on


def test_a_text_without_words_is_refused(live, photo):
    found = ask(live, body=grounding_request(photo.read_bytes(), "的 的"))
    assert found.status == 400 and "English" in json.loads(found.body)["error"]


def test_a_port_in_use_is_refused_before_anything_is_read(live, tmp_path):
    called = CliRunner().invoke(app, ["explore", str(tmp_path / "none"), "--serve", "--port", str(live.server_port)])
    assert called.exit_code == 2 and f"port {live.server_port} is in use" in called.stderr
    assert "--port" in called.stderr and not (tmp_path / "tavq-page").exists()


def test_a_run_without_plans_is_not_served(explored):
    with LiveServer(0) as server:
        with pytest.raises(ValueError, match="--serve places texts"):
            server.show({**explored.content, "no_plans": "This run has no heads."}, explored.runs[0])
        assert server.page == b""
