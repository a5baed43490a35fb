"""Every method with the same recipe: the same start and images, and a run that resumes and loads."""

import pytest
import torch
from helpers.toy_corpus import HOST, corpus, recipe, stopped
from safetensors.torch import load_file

from tavq_plugin.methods import METHODS
from tavq_plugin.training import fit
from tavq_plugin.training.build_host import build_host
from tavq_plugin.training.recipe import HostRecipe

pytest.importorskip("taming")
pytest.importorskip("accelerate")
SHARED = dict(steps=3, batch_size=4, checkpoint_every=2, start={"settle_share": 0.34, "revive_every": 2})
OPTIONS = {"vqct": {"threshold": 1}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return fit("vqgan", recipe(**SHARED), corpus(), tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_trains_resumes_and_loads(name, plain, tmp_path):
    settings = recipe(**SHARED, options=OPTIONS.get(name, {}))
    stopped(name, settings, tmp_path / "run", after=3)
    fitted = fit(name, settings, corpus(), tmp_path / "run")
    assert fitted.history[0]["pixel"] == plain.history[0]["pixel"]  # one seed, one start
    assert all(torch.isfinite(p).all() for p in fitted.tokenizer.parameters())
    saved = load_file(tmp_path / "run" / "host.safetensors")
    build_host(HostRecipe(**HOST), 16).load_state_dict(saved, strict=True)
    loaded = fit(name, settings, corpus(), tmp_path / "run", progress=lambda *row: pytest.fail("trained"))
    for ours, theirs in ((loaded.tokenizer, fitted.tokenizer), (loaded.method, fitted.method)):
        ours, theirs = dict(ours.named_parameters()), dict(theirs.named_parameters())
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
