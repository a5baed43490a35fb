"""Checkpoints: whole or not there, whatever happens while one is written; no pickle in them."""

import errno
import json
import os
import signal

import pytest
import torch
from helpers.toy_corpus import corpus, recipe, stopped

from tavq_plugin.io.ownership import MARKER
from tavq_plugin.io.state_tree import load_tree, save_tree
from tavq_plugin.training import checkpoint, fit
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


def test_what_needs_pickle_is_refused_by_its_place(tmp_path):
    with pytest.raises(TypeError, match="the state at /method/draw is a Generator, .* get_state"):
        save_tree(tmp_path / "tree", {"method": {"draw": torch.Generator()}})


def names(folder):
    """What is in a folder, apart from the marker."""
    return sorted(path.name for path in folder.iterdir() if path.name != MARKER)


def saved(folder, *steps, keep=1):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, {"number": step, "weights": torch.full((1000,), float(step))}, [{"step": step}])
    return checkpoints


@pytest.mark.parametrize("at", ["save_tree", "sync", "put_in_place", "os.replace"])
def test_a_kill_in_the_middle_of_a_save_leaves_the_one_before(tmp_path, at):
    saved(tmp_path, 1)

    def die(*arguments, **options):
        if at == "save_tree":
            (tmp_path / ".step-000000002.partial" / "state.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            owner, name = (os, "replace") if at == "os.replace" else (checkpoint, at)
            setattr(owner, name, die)
            saved(tmp_path, 2)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    state, history = Checkpoints(tmp_path).latest()
    assert state["number"] == 1 and history == [{"step": 1}] and (state["weights"] == 1).all()
    assert Checkpoints(tmp_path).saved() == [tmp_path / "step-000000001"]
    state, _ = saved(tmp_path, 2).latest()  # what was left half-written is not in the way
    assert state["number"] == 2 and names(tmp_path) == ["step-000000002"]


def test_a_full_disk_is_said_and_the_one_before_is_whole(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 1)

    def full(path, tree):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_tree", full)
    with pytest.raises(OSError, match=r"step 2 could not be written .*No space left.*000001 is whole: free some space"):
        saved(tmp_path, 2)
    assert checkpoints.latest()[0]["number"] == 1 and names(tmp_path) == ["step-000000001"]
    with pytest.raises(OSError, match="there was none before"):
        saved(tmp_path / "new", 1)


def test_only_so_many_are_kept(tmp_path):
    assert [path.name for path in saved(tmp_path, 1, 2, 3, keep=2).saved()] == ["step-000000002", "step-000000003"]


def test_a_damaged_one_is_named_with_the_mend(tmp_path):
    checkpoints = saved(tmp_path, 1)
    path = tmp_path / "step-000000001" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="step-000000001 cannot be read .*: delete it"):
        checkpoints.latest()


def test_a_kill_while_the_finished_run_is_written_leaves_it_to_be_finished(tmp_path, monkeypatch):
    pytest.importorskip("taming")
    settings = recipe(steps=3, checkpoint_every=2)
    whole = fit("noisy", settings, corpus(), tmp_path / "whole")
    stopped("noisy", settings, tmp_path / "run", after=2)
    assert Checkpoints(tmp_path / "run" / "checkpoints").saved() == []  # the interrupt came before the save
    from tavq_plugin.training import trainer

    real = trainer.save_json

    def refuse(path, content):
        if path.name == "history.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_json", refuse)
        with pytest.raises(OSError, match="finished run could not be written .*No space left.*free some"):
            fit("noisy", settings, corpus(), tmp_path / "run")
    assert not (tmp_path / "run" / "history.json").exists()
    again = fit("noisy", settings, corpus(), tmp_path / "run")
    assert [row["pixel"] for row in again.history] == [row["pixel"] for row in whole.history]
    assert len(json.loads((tmp_path / "run" / "history.json").read_text())["history"]) == 3
