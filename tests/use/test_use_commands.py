"""`tavq encode`, `decode`, `words`, `show`, `export`: exit codes, --json, and errors on stderr."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tavq_plugin.cli.app import app


def call(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def numbers(*arguments, code=0):
    exit_code, out, error = call(*arguments, "--json")
    assert exit_code == code, error
    return json.loads(out)


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 255, (20, 16, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "dog.png")
    return tmp_path / "photos" / "dog.png"


def test_encode_and_decode(exported, photo, tmp_path):
    found = numbers("encode", photo.parent, "--run", exported, "--out", tmp_path / "tokens")
    assert (found["images"], found["encoded"], found["resized"], found["rejected"]) == (1, 1, 1, 0)
    code, out, _ = call("encode", photo.parent, "--run", exported, "--out", tmp_path / "tokens")
    assert code == 0 and "1 image encoded, 0 left out" in out and "another size than 16 × 16" in out
    assert numbers("decode", tmp_path / "tokens", "--run", exported, "--out", tmp_path / "decoded")["images"] == 1
    (photo.parent / "cat.png").write_bytes(b"")
    assert numbers("encode", photo.parent, "--run", exported, "--out", tmp_path / "more", code=3)["rejected"] == 1
    code, out, error = call("decode", tmp_path / "tokens", "--run", tmp_path, "--out", tmp_path / "decoded")
    assert code == 2 and out == "" and "is no run" in error


def test_words_say_what_is_not_above_chance(comparison):
    run = comparison / "tavq" / "seed0"
    found = numbers("words", run, "--word", "red", "--level", "3", code=1)  # red is in every text
    assert found["held_out_images"] == 16 and found["rows"] and not any(row["above_chance"] for row in found["rows"])
    code, out, _ = call("words", run, "--code", found["rows"][0]["code"], "--level", "3")
    assert code == 1 and "not above chance" in out and "nothing is above chance" in out
    code, _, error = call("words", run, "--code", "0", "--word", "red")
    assert code == 2 and "give one of the two" in error
    assert call("words", run, "--code", "99")[0] == 2


def test_show_draws_a_run_without_heads_is_refused(comparison, photo, tmp_path):
    code, out, error = call("show", comparison / "vqgan" / "seed0", photo, "a dog")
    assert code == 2 and out == "" and "has no heads" in error
    code, _, error = call("show", comparison / "vqgan" / "seed0", photo, "a dog", "--out", tmp_path / "a.jpg")
    assert code == 2 and "ends in .png" in error


def test_a_grounding_is_drawn_with_markup_as_text(run, photo, tmp_path):
    pytest.importorskip("matplotlib")
    from tavq_plugin.use.ground_picture import draw_grounding

    draw_grounding(run.ground(photo, "A $dog$ <b>runs</b> beside a [red]car[/red]."), tmp_path / "shown.png")
    with Image.open(tmp_path / "shown.png") as picture:
        assert picture.width > 500 and len(np.unique(np.array(picture))) > 20


def test_export_writes_what_it_names(exported, tmp_path):
    for kind, name in (("hub", "config.json"), ("host", "host.ckpt"), ("table", "table.safetensors")):
        written = numbers("export", exported, "--out", tmp_path / kind, "--as", kind)["written"]
        assert str(tmp_path / kind / name) in written and (tmp_path / kind / name).is_file()
    code, out, _ = call("export", exported, "--out", tmp_path / "hub")
    assert code == 0 and "asks for a licence" in out
    assert call("export", exported, "--out", tmp_path / "hub", "--as", "onnx")[0] == 2
