"""Checkpoints: complete or absent, whatever happens while one is written; no pickle in them."""

import itertools
import json
import os
import signal
import sys

import pytest
import torch
from helpers.toy_corpus import corpus, recipe

from tavq_plugin.io.ownership import MARKER
from tavq_plugin.io.state_tree import load_tree, save_tree
from tavq_plugin.training import fit
from tavq_plugin.training.checkpoint import Checkpoints

TREE = {
    "number": 3, "rate": 0.1, "betas": [0.5, 0.9], "none": None, "on": True, "name": "a/b",
    "state": {0: {"step": torch.tensor(2.0)}, 7: {}}, "empty": torch.zeros(0), "half": torch.ones(2).bfloat16(),
    "a": {"b": torch.ones(1)}, "a/b": torch.zeros(1),
}  # fmt: skip


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def test_a_tree_comes_back_as_it_was(tmp_path):
    shared = torch.arange(4.0)
    tree = {**TREE, "tied": [shared, shared, shared[:2]]}
    save_tree(tmp_path / "tree", tree)
    assert equal(load_tree(tmp_path / "tree"), tree)


def test_a_value_that_needs_pickle_is_refused_and_located(tmp_path):
    with pytest.raises(TypeError, match="the state at /method/draw is a Generator, .* get_state"):
        save_tree(tmp_path / "tree", {"method": {"draw": torch.Generator()}})


def names(folder):
    """The names in a folder, except the marker."""
    return sorted(path.name for path in folder.iterdir() if path.name != MARKER)


def saved(folder, *steps, keep=1):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, {"number": step, "weights": torch.full((1000,), float(step))}, [{"step": step}])
    return checkpoints


EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def saved_until_a_kill(folder, step, count):
    """Save a step in a child, killed just before its `count`-th file operation; returns whether it was killed."""
    child = os.fork()
    if child == 0:
        seen = []

        def watch(event, arguments):
            if event in EVENTS and str(folder) in str(arguments[0]):
                seen.append(event)
                if len(seen) == count:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            saved(folder, step)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_kill_anywhere_in_a_save_leaves_a_complete_checkpoint(tmp_path):
    found = []
    for count in itertools.count(1):
        folder = tmp_path / str(count)
        saved(folder, 1)
        died = saved_until_a_kill(folder, 2, count)
        state, history = Checkpoints(folder).latest()
        assert history == [{"step": state["number"]}] and (state["weights"] == state["number"]).all()
        found.append(state["number"])
        again = 2 + count % 2  # leftovers of the killed save hinder neither the same step nor another
        state, _ = saved(folder, again).latest()
        assert state["number"] == again and names(folder) == [f"step-{again:09}"]
        if not died:
            break
    assert len(found) > 8 and found == sorted(found) and set(found) == {1, 2}


def test_a_full_disk_is_reported_and_the_previous_checkpoint_stays(tmp_path):
    resource = pytest.importorskip("resource")
    checkpoints, before = saved(tmp_path / "run", 1), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # bytes a file may have
    try:
        with pytest.raises(
            OSError, match=r"step 2 could not be written .*too large.*: free some space .*resumes from .*000001"
        ):
            saved(tmp_path / "run", 2)
        with pytest.raises(OSError, match="there is no earlier checkpoint"):
            saved(tmp_path / "new", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints.latest()[0]["number"] == 1 and names(tmp_path / "run") == ["step-000000001"]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    assert [path.name for path in saved(tmp_path, 1, 2, 3, keep=2).saved()] == ["step-000000002", "step-000000003"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    checkpoints = saved(tmp_path, 1)
    path = tmp_path / "step-000000001" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="step-000000001 cannot be read .*: delete it"):
        checkpoints.latest()


def test_a_run_that_cannot_be_written_is_finished_by_running_it_again(tmp_path):
    pytest.importorskip("taming")
    settings = recipe(steps=3, checkpoint_every=2)
    whole = fit("noisy", settings, corpus(), tmp_path / "whole")
    in_the_way = tmp_path / "run" / "history.json" / "thesis.txt"

    def obstruct(done, row):
        if done == 3:
            in_the_way.parent.mkdir()
            in_the_way.write_text("years: 4")

    with pytest.raises(OSError, match="finished run could not be written .*free some"):
        fit("noisy", settings, corpus(), tmp_path / "run", progress=obstruct)
    assert [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").saved()] == ["step-000000002"]
    in_the_way.unlink()
    in_the_way.parent.rmdir()
    again = fit("noisy", settings, corpus(), tmp_path / "run")
    assert [row["pixel"] for row in again.history] == [row["pixel"] for row in whole.history]
    assert len(json.loads((tmp_path / "run" / "history.json").read_text())["history"]) == 3
