"""`tavq explore` as a command and as a function: what it writes, and what it refuses."""

import json

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from helpers.toy_corpus import Letters, recipe, save_as_scenes
from PIL import Image
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.use.explore.explore_run import explore_run


@pytest.fixture(scope="module")
def bare_run(tmp_path_factory, toy_scenes):
    """The folder of a run without heads."""
    from tavq_plugin.training import fit

    folder = tmp_path_factory.mktemp("bare") / "seed0"
    fit("vqgan", recipe(steps=1), toy_scenes, folder)
    save_as_scenes(toy_scenes, folder / "data")
    return folder


def call(*arguments):
    result = CliRunner().invoke(app, ["explore", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def test_the_tables_hold_what_the_page_shows(toy_runs, tmp_path):
    before = {file: file.read_bytes() for file in toy_runs[0].rglob("*") if file.is_file()}
    told = []
    made = explore_run(
        toy_runs[0], out=tmp_path / "page", images=3, also=toy_runs[1:], parquet=True, encoder=Letters(), device="cpu",
        progress=lambda name, done, total: told.append(name),
    )  # fmt: skip
    assert [path.name for path in made.written] == ["index.html", "codes.parquet", "units.parquet"]
    assert before == {file: file.read_bytes() for file in toy_runs[0].rglob("*") if file.is_file()}
    assert {"tavq, seed 0", "tavq, seed 1", "plans", "codes"} <= set(told)
    codes, units = (pq.read_table(path) for path in made.written[1:])
    masses = units.group_by(["image", "level"]).aggregate([("mass", "sum")])["mass_sum"].to_pylist()
    assert masses == pytest.approx([1] * 9, abs=1e-3) and set(units["image"].to_pylist()) == {1, 2, 3}
    assert units["near_uniform"].to_pylist() == pc.greater_equal(units["entropy"], 0.99).to_pylist()
    assert codes.group_by("level").aggregate([("share", "sum")])["share_sum"].to_pylist() == pytest.approx([1] * 3)
    first, row = made.content["cards"][0]["cards"][0], codes.to_pylist()[0]
    assert (row["code"], row["images"], row["neighbours"]) == (first["code"], first["images"], first["neighbours"])
    assert row["text"] == ", ".join(word[0] for word in first["words"] if word[5]) and abs(row["x"]) <= 1
    again = explore_run(toy_runs[0], out=tmp_path / "page", images=3, encoder=Letters(), device="cpu")
    assert again.content["images"] == made.content["images"]


def test_a_run_without_heads_has_a_page_without_maps(visit, bare_run, tmp_path):
    code, out, _ = call(bare_run, "--out", tmp_path / "page", "--images", 2, "--device", "cpu")
    assert code == 0 and "2 images" in out and "index.html" in out.replace("\n", "")
    page = visit("images/1/1", url=(tmp_path / "page" / "index.html").as_uri())
    assert "trained without alignment" in page.inner_text("main")
    code, out, _ = call(bare_run, "--out", tmp_path / "page", "--images", 2, "--device", "cpu", "--json")
    assert code == 0 and json.loads(out) == {"images": 2, "written": [str(tmp_path / "page" / "index.html")]}


def test_images_of_a_folder_are_shown_with_their_texts(bare_run, tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(60):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
        (tmp_path / "photos" / f"{i}.txt").write_text(f"Photograph {i} of a dog." if i % 2 else "")
    made = explore_run(bare_run, out=tmp_path / "page", data=tmp_path / "photos", images=1, device="cpu")
    assert made.content["data"] == "photos" and made.content["images"][0]["text"].startswith("Photograph")
    for file in (tmp_path / "photos").glob("*.txt"):
        file.write_text("")
    code, _, error = call(bare_run, "--data", tmp_path / "photos", "--out", tmp_path / "other")
    assert code == 2 and "tavq caption" in error and not (tmp_path / "other" / "index.html").exists()


def test_what_is_refused(toy_runs, bare_run, tmp_path, toy_scenes):
    code, _, error = call(tmp_path / "none", "--out", tmp_path / "page")
    assert code == 2 and "no folder" in error
    code, _, error = call(tmp_path, "--out", tmp_path / "page")
    assert code == 2 and "is no run" in error
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    code, _, error = call(bare_run, "--out", tmp_path / "mine")
    assert code == 2 and (tmp_path / "mine" / "index.html").read_text() == "mine"
    settings = json.loads((bare_run / "settings.json").read_text())
    assert settings["resolution"] == 16
    with pytest.raises(ValueError, match="--images 0"):
        explore_run(bare_run, out=tmp_path / "page", images=0)
    assert not (tmp_path / "page").exists()


def test_runs_of_another_resolution_do_not_go_together(bare_run, tmp_path, toy_scenes):
    from tavq_plugin.training import fit

    fit("vqgan", recipe(steps=1, resolution=32), _at_32(toy_scenes), tmp_path / "other")
    code, _, error = call(bare_run, "--also", tmp_path / "other", "--out", tmp_path / "page", "--device", "cpu")
    assert code == 2 and "32" in error and "--also" in error and not (tmp_path / "page" / "index.html").exists()


def _at_32(corpus):
    from dataclasses import replace

    return replace(corpus, images=corpus.images.repeat_interleave(2, 2).repeat_interleave(2, 3))
