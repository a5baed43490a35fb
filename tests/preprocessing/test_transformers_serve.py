"""`tavq caption` against `transformers serve`, a server that we did not write, with a tiny random model."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from transformers.utils.import_utils import is_serve_available
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.preprocessing.caption import caption_images
from tavq_plugin.preprocessing.local_captioner import LocalCaptioner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not is_serve_available(), reason="transformers serve needs fastapi, uvicorn, openai (extra: dev)"
    ),
]
PROMPT = "Describe the image ."


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def transformers_serve(tiny_vlm, tmp_path_factory):
    """Address of the server, and the folder of its model."""
    model, port, log = tiny_vlm("llava"), free_port(), tmp_path_factory.mktemp("serve") / "log.txt"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--port", str(port)]
    with log.open("w") as lines:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--host", "127.0.0.1"], stdout=lines, stderr=lines,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.5)
        else:
            pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def colours(tmp_path):
    folder = tmp_path / "colours"
    folder.mkdir()
    for i, colour in enumerate(("red", "blue", "white", "black")):
        Image.new("RGB", (32, 32), colour).save(folder / f"{i}.png")
    return folder


def rows(file: Path):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_caption_gets_the_texts_that_the_model_writes_here(transformers_serve, colours, tmp_path):
    url, model = transformers_serve
    out = tmp_path / "c.jsonl"
    command = ["caption", "--data", str(colours), "--out", str(out), "--model", str(model), "--server", url, "--json"]
    command += ["--prompt", PROMPT, "--max-new-tokens", "12"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    counts = json.loads(result.stdout)
    assert counts["written"] == 4 and counts["prompt_tokens"] > 0 and counts["completion_tokens"] > 0
    here = tmp_path / "here.jsonl"
    caption_images(colours, here, LocalCaptioner(str(model), max_new_tokens=12), prompt=PROMPT, progress=False)
    found = {row["id"]: (row["text"], row["flag"]) for row in rows(out)}
    assert any(text for text, _ in found.values()) and "cut" in {flag for _, flag in found.values()}
    assert found == {row["id"]: (row["text"], row["flag"]) for row in rows(here)}
    again = CliRunner().invoke(app, command)
    assert json.loads(again.stdout)["already_written"] == 4


def test_a_model_that_the_server_does_not_have_is_refused_by_name(transformers_serve, colours, tmp_path):
    url, _ = transformers_serve
    command = ["caption", "--data", str(colours), "--out", str(tmp_path / "c.jsonl"), "--model", "none/such"]
    result = CliRunner().invoke(app, [*command, "--server", url, "--retries", "0"])
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert "HTTP" in " ".join(result.output.split())
