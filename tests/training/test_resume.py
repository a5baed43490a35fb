"""A resumed run equals an uninterrupted one bit for bit; finished runs are loaded; other runs are not touched."""

import json

import pytest
import torch
from helpers.toy_corpus import HOST, corpus, recipe, stopped, weights
from safetensors.torch import load_file

from tavq_plugin.io.ownership import MARKER
from tavq_plugin.training import fit
from tavq_plugin.training.build_host import build_host
from tavq_plugin.training.checkpoint import Checkpoints
from tavq_plugin.training.recipe import HostRecipe

pytest.importorskip("taming")
pytest.importorskip("accelerate")
DROPOUT = {**HOST, "params": {**HOST["params"], "ddconfig": {**HOST["params"]["ddconfig"], "dropout": 0.1}}}
EVERYTHING = dict(
    host=DROPOUT, steps=8, batch_size=4, accumulation=2, ema=0.5, checkpoint_every=2, keep=2,
    adversarial={"start": 3, "width": 4, "layers": 1},
    start={"settle_share": 0.25, "revive_every": 2, "revive_below": 0.9},
)  # fmt: skip
TIMES = ("seconds", "plugin_share")


def untimed(history):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in history]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run of eight steps, and a folder with the checkpoint of its sixth step."""
    folder = tmp_path_factory.mktemp("whole")
    stopped("noisy", recipe(**EVERYTHING), folder / "six", after=7)
    return fit("noisy", recipe(**EVERYTHING), corpus(), folder / "run"), folder


@pytest.mark.parametrize("after", [1, 2, 5], ids=["before any checkpoint", "settled", "with the discriminator"])
def test_a_resumed_run_equals_an_uninterrupted_one(uninterrupted, tmp_path, after):
    whole, folder = uninterrupted
    stopped("noisy", recipe(**EVERYTHING), tmp_path / "run", after=after)
    stopped("noisy", recipe(**EVERYTHING), tmp_path / "run", after=7)
    state = "checkpoints/step-000000006/state.safetensors"
    assert (tmp_path / "run" / state).read_bytes() == (folder / "six" / state).read_bytes()
    resumed = fit("noisy", recipe(**EVERYTHING), corpus(), tmp_path / "run")
    assert untimed(resumed.history) == untimed(whole.history)
    for name in ("host", "tavq", "method"):
        ours, theirs = tmp_path / "run" / f"{name}.safetensors", folder / "run" / f"{name}.safetensors"
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_the_checkpoint_holds_all_changing_state(uninterrupted):
    _, folder = uninterrupted
    state, history = Checkpoints(folder / "six" / "checkpoints").latest()
    assert len(history) == state["number"] == 6
    assert {"model", "optimizer", "adversary", "average", "codebook", "streams"} <= state.keys()
    assert state["model"]["method._extra_state"]["calls"] == 2 * 4  # two passes of each step with codes
    assert state["adversary"]["optimizer"]["state"][0]["step"] == 3


def test_a_finished_run_is_loaded_and_not_trained(uninterrupted):
    whole, folder = uninterrupted
    loaded = fit("noisy", recipe(**EVERYTHING), corpus(), folder / "run", progress=lambda *row: pytest.fail("trained"))
    ours, theirs = weights(loaded), weights(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.history == whole.history and loaded.seconds_per_step == whole.seconds_per_step
    assert loaded.method.calls == whole.method.calls and loaded.method.finished


def test_the_folder_holds_the_run_and_the_host_loads_strictly(uninterrupted):
    _, folder = uninterrupted
    files = {path.name for path in (folder / "run").iterdir()}
    assert files == {
        "settings.json", "recipe.yaml", "host.safetensors", "tavq.safetensors", "method.safetensors", "history.json",
        MARKER,
    }  # fmt: skip
    fresh = build_host(HostRecipe(**HOST), 16)
    assert not fresh.load_state_dict(load_file(folder / "run" / "host.safetensors"), strict=True).missing_keys
    assert json.loads((folder / "run" / "settings.json").read_text())["method"] == "noisy"


def test_a_run_with_other_settings_is_refused_and_stays(uninterrupted):
    _, folder = uninterrupted
    before = (folder / "run" / "host.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run with seed=0, and this one has 1: give another folder"):
        fit("noisy", recipe(**EVERYTHING, seed=1), corpus(), folder / "run")
    with pytest.raises(ValueError, match=r"corpus\.images=10, and this one has 9"):
        fit("noisy", recipe(**EVERYTHING), corpus(9), folder / "run")
    assert (folder / "run" / "host.safetensors").read_bytes() == before
    fit("noisy", recipe(**{**EVERYTHING, "keep": 3}), corpus(), folder / "run")  # changes nothing about what is learned


def test_the_callers_random_stream_does_not_advance(tmp_path):
    before = torch.get_rng_state()
    fit("vqgan", recipe(steps=1), corpus(), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
