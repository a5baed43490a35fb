"""Files of others in a run's folder stop the run before it trains; folders without markers still resume."""

import os
import stat

import pytest
import yaml
from helpers.toy_corpus import corpus, recipe, stopped

from tavq_plugin.io.ownership import MARKER
from tavq_plugin.training import fit

pytest.importorskip("taming")
pytest.importorskip("accelerate")
SETTINGS = dict(steps=4, checkpoint_every=2)


def never(done, row):
    raise AssertionError("trained")


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def without_markers(folder):
    """Make a run's folder look as earlier releases wrote it, without markers."""
    for marker in folder.rglob(MARKER):
        marker.unlink()
    path = folder / "recipe.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#")))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "recipe.yaml",
        "settings.json",
        "host.safetensors",
        "history.json",
        "checkpoints/thesis.txt",
        "checkpoints/step-000000100/model.bin",
        ".final.partial/thesis.txt",
    ],
)
def test_a_file_that_we_did_not_make_stops_a_run_before_it_trains(tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("steps: 3" if name == "recipe.yaml" else "{}")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"is in the way and was not made by .*another --out, or move it") as said:
        fit("noisy", recipe(**SETTINGS), corpus(), tmp_path / "run", progress=never)
    named = str(said.value).split(" is in the way")[0]
    assert str(path).startswith(named) and named != str(tmp_path / "run")
    assert contents(tmp_path) == before


def test_a_link_named_as_our_temporary_folder_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "host.safetensors").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".final.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError, match=r"\.final\.partial is in the way"):
        fit("noisy", recipe(**SETTINGS), corpus(), tmp_path / "run", progress=never)
    assert (tmp_path / "mine" / "host.safetensors").read_text() == "mine"


def test_a_file_added_among_the_checkpoints_stays(tmp_path):
    stopped("noisy", recipe(**SETTINGS), tmp_path, after=3)
    (tmp_path / "checkpoints" / "thesis.txt").write_text("years")
    fit("noisy", recipe(**SETTINGS), corpus(), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name != MARKER] == ["thesis.txt"]
    fit("noisy", recipe(**SETTINGS), corpus(), tmp_path, progress=never)


def test_a_handwritten_recipe_in_a_run_is_not_overwritten(tmp_path):
    stopped("noisy", recipe(**SETTINGS), tmp_path, after=3)
    (tmp_path / "recipe.yaml").write_text("steps: 5")
    with pytest.raises(FileExistsError, match=r"recipe\.yaml is in the way"):
        fit("noisy", recipe(**SETTINGS), corpus(), tmp_path, progress=never)
    assert (tmp_path / "recipe.yaml").read_text() == "steps: 5"


def test_runs_without_markers_are_resumed_or_loaded(tmp_path):
    whole = fit("noisy", recipe(**SETTINGS), corpus(), tmp_path / "whole")
    stopped("noisy", recipe(**SETTINGS), tmp_path / "run", after=3)
    partial = tmp_path / "run" / "checkpoints" / ".step-000000004.partial"  # left by a kill in the middle of a save
    partial.mkdir()
    (partial / "state.safetensors").write_bytes(b"half")
    without_markers(tmp_path / "run")
    steps = []
    settings = recipe(**SETTINGS, keep=2)  # changes recipe.yaml, but nothing about what is learned
    resumed = fit("noisy", settings, corpus(), tmp_path / "run", progress=lambda done, row: steps.append(done))
    assert steps == [3, 4] and not (tmp_path / "run" / "checkpoints").exists()
    assert [row["pixel"] for row in resumed.history] == [row["pixel"] for row in whole.history]
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["keep"] == 2
    again = fit("noisy", settings, corpus(), without_markers(tmp_path / "run"), progress=never)
    assert again.history == resumed.history


def test_all_files_of_a_run_follow_the_umask(tmp_path):
    def modes():
        return {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in contents(tmp_path)}

    before = os.umask(0o027)
    try:
        stopped("noisy", recipe(**SETTINGS), tmp_path / "run", after=3)
        kept = modes()
        fit("noisy", recipe(**SETTINGS), corpus(), tmp_path / "run")
        finished = modes()
    finally:
        os.umask(before)
    assert {"state.safetensors", "history.json"} <= kept.keys() and set(kept.values()) == {"0o640"}
    assert {"host.safetensors", "tavq.safetensors", "method.safetensors"} <= finished.keys()
    assert set(finished.values()) == {"0o640"}
