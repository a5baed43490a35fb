"""Hosts with shared modules or channels_last weights are saved and resumed; a host that cannot be saved is refused."""

import pytest
import torch
from helpers.toy_corpus import corpus, recipe, stopped, weights
from safetensors.torch import load_file

from tavq_plugin.io.storable import refuse_unstorable, storable
from tavq_plugin.training import fit
from tavq_plugin.training.build import build
from tavq_plugin.training.build_host import build_host
from tavq_plugin.training.recipe import HostRecipe
from tavq_plugin.training.run_folder import load_weights, save_weights

pytest.importorskip("accelerate")
pytest.importorskip("vector_quantize_pytorch")

ALLOWED = {"allow": ["helpers"]}
ODD = [{"twice": True}, {"channels_last": True}]


def odd(target="Odd", **params):
    return {
        "target": f"helpers.toy_corpus.{target}",
        "params": params,
        "wrap": {"taps": ["inner.first", "inner.second"]},
    }


@pytest.mark.parametrize("params", ODD, ids=lambda params: next(iter(params)))
def test_a_run_is_saved_resumed_and_loaded(params, tmp_path):
    asked = recipe(host=odd(**params), steps=6, checkpoint_every=2, ema=0.5, optimizer={"learning_rate": 0.01})
    whole = fit("vqgan", asked, corpus(), tmp_path / "whole", **ALLOWED)
    stopped("vqgan", asked, tmp_path / "run", after=5, **ALLOWED)
    resumed = fit("vqgan", asked, corpus(), tmp_path / "run", **ALLOWED)
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [row["pixel"] for row in resumed.history] == [row["pixel"] for row in whole.history]
    loaded = weights(fit("vqgan", asked, corpus(), tmp_path / "run", **ALLOWED))
    assert all(torch.equal(loaded[name], theirs[name]) for name in theirs)
    fresh = build_host(HostRecipe(**odd(**params)), 16, **ALLOWED)
    fresh.load_state_dict(load_file(tmp_path / "run" / "host.safetensors"), strict=True)


@pytest.mark.parametrize("params", ODD, ids=lambda params: next(iter(params)))
def test_the_weights_alone_are_saved_and_loaded(params, tmp_path):
    asked = recipe(host=odd(**params))
    ours, _ = build(asked, corpus(), **ALLOWED)
    theirs, _ = build(recipe(host=odd(**params), seed=1), corpus(), **ALLOWED)
    save_weights(tmp_path, ours, None)
    load_weights(tmp_path, theirs, None)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (odd("WithExtra", extra="x"), "the host's state dict holds a str at '_extra_state'"),
        (odd(complex=True), "holds a tensor of torch.complex128 at 'phases'"),
    ],
    ids=["extra state", "type"],
)
def test_a_host_that_cannot_be_saved_is_refused_before_the_first_step(host, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        fit("vqgan", recipe(host=host), corpus(), tmp_path, progress=lambda *row: pytest.fail("trained"), **ALLOWED)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("params", [{}, *ODD], ids=["plain", "twice", "channels_last"])
def test_a_run_saves_once_at_step_0_and_trains_nothing_if_it_cannot(params, tmp_path):
    """A disk that takes the settings and not the weights is found before the first step, not after the last."""
    resource = pytest.importorskip("resource")
    asked, before = recipe(host=odd(**params), steps=2), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))  # bytes that a file may have
    try:
        with pytest.raises(OSError, match="could not be saved at its end: free some space .* nothing was trained"):
            fit("vqgan", asked, corpus(), tmp_path, progress=lambda *row: pytest.fail("trained"), **ALLOWED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.glob(".final*"))
    seen = []
    fit("vqgan", asked, corpus(), tmp_path, progress=lambda done, row: seen.append((done, files(tmp_path))), **ALLOWED)
    assert [done for done, _ in seen] == [1, 2] and not any(named for _, named in seen)  # what was tried is removed
    assert files(tmp_path) >= {"host.safetensors", "method.safetensors"}


def files(folder):
    return {path.name for path in folder.rglob("*.safetensors")}


def test_storable_tensors_are_equal_contiguous_and_share_no_memory():
    weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    rows = torch.randn(6, 2)
    state = {"a": weight, "b": weight, "c": rows[:3], "d": rows[2:], "e": rows.T, "f": torch.empty(0)}
    ready = storable(state)
    assert list(ready) == list(state) and all(torch.equal(ready[name], state[name]) for name in state)
    assert all(value.is_contiguous() and not value.requires_grad for value in ready.values())
    assert len({value.untyped_storage().data_ptr() for value in ready.values() if value.numel()}) == 5


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "a NoneType at 'x'"),
        (torch.empty(2, device="meta"), "on the meta device"),
        (torch.eye(2).to_sparse(), "a sparse tensor"),
    ],
    ids=["none", "meta", "sparse"],
)
def test_a_value_that_cannot_be_stored_is_named(value, words):
    with pytest.raises(ValueError, match=words):
        refuse_unstorable({"w": torch.ones(1), "x": value})
