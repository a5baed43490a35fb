"""`init`: the state dict that fits a host is found and loaded whole, or the checkpoint is refused by name."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.toy_corpus import HOST, corpus, recipe, stopped, weights
from safetensors.torch import load_file, save_file

from tavq_plugin.evaluation.sources.finished_runs import runs_in
from tavq_plugin.training import fit
from tavq_plugin.training.build import build, describe_start
from tavq_plugin.training.build_host import build_host
from tavq_plugin.training.initial_weights import initial_weights, load_initial_weights
from tavq_plugin.training.recipe import HostRecipe

pytest.importorskip("taming")
pytest.importorskip("accelerate")


def new_host(seed=0, **params):
    torch.manual_seed(seed)
    return build_host(HostRecipe(HOST["target"], {**HOST["params"], **params}), 16)


@pytest.fixture(scope="module")
def trained():
    """The weights of a host that no seed of a test gives."""
    return {name: value.clone() for name, value in new_host(seed=99).state_dict().items()}


def below(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def averaged(state):
    return {name: torch.zeros_like(value) for name, value in state.items()}


LAYOUTS = {
    "bare": lambda state: state,
    "Lightning": lambda state: {
        "state_dict": {**state, "loss.logvar": torch.zeros(1), "loss.discriminator.main.0.weight": torch.ones(2)},
        "epoch": 3,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
    },
    "DDP": lambda state: below("module.", state),
    "compiled": lambda state: below("_orig_mod.", state),
    "part of a model": lambda state: {"state_dict": {**below("model.vqgan.", state), "model.loss.w": torch.ones(1)}},
    "LlamaGen": lambda state: {
        "model": state, "ema": averaged(state), "discriminator": {"w": torch.ones(1)}, "steps": 7,
        "args": argparse.Namespace(vq_ckpt="x"),
    },
    "LDM": lambda state: {**state, "model_ema.decay": torch.ones(()), "model_ema.encoderconv_inweight": torch.ones(2)},
    "averaged beside": lambda state: {**below("model.", state), **below("ema_model.", averaged(state))},
    "averaged alone": lambda state: {"ema": state, "step": 2},
    "half precision": lambda state: {name: value.half() for name, value in state.items()},
}  # fmt: skip
LEFT_OUT = {
    "Lightning": "2 others are left out: loss.* 2 (training loss)",
    "part of a model": "1 others are left out: loss.* 1 (training loss)",
    "LDM": "2 others are left out: model_ema.* 2 (averaged copy)",
    "LlamaGen": "(averaged copy), discriminator 1 (discriminator)",
    "averaged beside": "others are left out: ema_model.*",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_state_dict_that_fits_is_found_and_loaded(layout, trained, tmp_path):
    torch.save(LAYOUTS[layout](trained), tmp_path / "host.ckpt")
    host = new_host()
    said = load_initial_weights(host, str(tmp_path / "host.ckpt"))
    assert f"all {len(trained)} tensors of VQGAN are loaded" in said and LEFT_OUT.get(layout, "") in said
    assert ("left out" in said) == (layout in LEFT_OUT)
    precise = layout != "half precision"
    for name, value in host.state_dict().items():
        torch.testing.assert_close(value, trained[name], rtol=0 if precise else 1e-2, atol=0 if precise else 1e-2)


def with_one(state, name, value):
    return {**state, name: value}


BAD = {
    "shape": (
        lambda state: with_one(state, "quantize.embedding.weight", torch.zeros(64, 8)),
        r"1 differ in shape \(quantize\.embedding\.weight is 64×8 there and 32×8 in the host\); give host\.target",
    ),
    "missing": (
        lambda state: {name: value for name, value in state.items() if not name.startswith("decoder.")},
        r"does not fit VQGAN: \d+ of its \d+ tensors are missing \(decoder\.conv_in\.weight, .*…\); give host\.target",
    ),
    "another model": (lambda state: {"fc.weight": torch.ones(2)}, r"holds none of the \d+ tensors of VQGAN"),
    "not understood": (
        lambda state: with_one(state, "text_head.weight", torch.ones(2)),
        r"holds 1 tensors that are neither .* \(text_head\.weight\): give host\.target",
    ),
    "another entry": (
        lambda state: {"vq": state, "gpt": {"w": torch.ones(2)}}, r"neither .* \(gpt\.w\).*convert-checkpoint",
    ),
    "twice": (
        lambda state: {"first": state, "second": averaged(state)},
        r"more than once \(entry first; entry second\): write the one you mean",
    ),
    "NaN": (
        lambda state: with_one(state, "quant_conv.bias", torch.full((8,), float("nan"))),
        r"1 tensors in .* are not finite \(quant_conv\.bias\)",
    ),
    "whole numbers": (
        lambda state: with_one(state, "quant_conv.bias", torch.zeros(8, dtype=torch.long)),
        r"quant_conv\.bias is 8 of torch\.int64 there and 8 in the host",
    ),
    "no weights": (lambda state: {"epoch": 3}, "holds no state dict"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_and_the_host_is_unchanged(case, trained, tmp_path):
    make, words = BAD[case]
    torch.save(make(trained), tmp_path / "host.ckpt")
    host, fresh = new_host(), new_host().state_dict()
    with pytest.raises(ValueError, match=words):
        load_initial_weights(host, str(tmp_path / "host.ckpt"))
    assert all(torch.equal(value, fresh[name]) for name, value in host.state_dict().items())


class Settings:
    """A class that an old checkpoint may name; it is never imported by the reader."""


def test_a_class_in_a_checkpoint_is_read_only_if_it_is_allowed(trained, tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save({"model": trained, "settings": Settings()}, path)
    name = f"{Settings.__module__}.Settings"
    with pytest.raises(ValueError, match=f"names {name}.*--allow {name}"):
        initial_weights(new_host(), str(path))
    assert "(entry model)" in initial_weights(new_host(), str(path), allow=[name]).summary
    assert "starts from a trained host" in describe_start(recipe(init=str(path)), allow=[name])


def test_paths_that_hold_no_weights_are_refused_with_the_mend(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*none\.ckpt: init \(--init\) takes a \.safetensors"):
        initial_weights(new_host(), str(tmp_path / "none.ckpt"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"is no run, as it has no settings\.json"):
        initial_weights(new_host(), str(tmp_path / "folder"))
    (tmp_path / "shared.json").write_text("{}")
    with pytest.raises(ValueError, match="is a comparison and holds several runs: give the folder of one"):
        initial_weights(new_host(), str(tmp_path))
    save_file(trained, tmp_path / "half.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "half.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"half\.safetensors is not a complete safetensors file"):
        initial_weights(new_host(), str(tmp_path / "half.safetensors"))
    stopped("vqgan", recipe(steps=4), tmp_path / "run", after=2)
    with pytest.raises(ValueError, match="is not finished: give the command that made it again"):
        initial_weights(new_host(), str(tmp_path / "run"))


@pytest.mark.parametrize("method", ["vqgan", "tavq", "cvq"])
def test_the_built_host_gives_the_output_of_a_host_that_the_weights_were_loaded_into(method, trained, tmp_path):
    save_file(trained, tmp_path / "host.safetensors")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    tokenizer, _ = build(recipe(method=method, init=str(tmp_path / "host.safetensors"), seed=5), corpus())
    host = new_host(seed=7)
    host.load_state_dict(trained)
    with torch.no_grad():
        ours, theirs = tokenizer.host.eval()(images), host.eval()(images)
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(tokenizer.eval()(images)[0][0], theirs[0])


STARTED = dict(steps=4, checkpoint_every=2, start={"settle_share": 0.5, "revive_every": 3, "revive_below": 0.9})


@pytest.fixture
def checkpoint(trained, tmp_path):
    save_file(trained, tmp_path / "host.safetensors")
    return str(tmp_path / "host.safetensors")


def test_a_trained_host_is_quantized_from_the_first_step_and_its_codes_stay(checkpoint, trained, tmp_path):
    asked = recipe(**{**STARTED, "steps": 1}, init=checkpoint, optimizer={"learning_rate": 1e-12})
    run = fit("noisy", asked, corpus(), tmp_path / "run")
    assert asked.settled == 0 and "quantizer" in run.history[0] and "usage3" in run.history[0]
    torch.testing.assert_close(run.tokenizer.adapter.codebook(), trained["quantize.embedding.weight"])
    scratch = fit("noisy", recipe(**{**STARTED, "steps": 2}), corpus(), tmp_path / "scratch")
    assert "quantizer" not in scratch.history[0]


def test_a_resumed_run_equals_an_uninterrupted_one_and_a_changed_checkpoint_is_refused(checkpoint, tmp_path):
    asked = recipe(**STARTED, init=checkpoint)
    whole = fit("noisy", asked, corpus(), tmp_path / "whole")
    stopped("noisy", asked, tmp_path / "run", after=3)
    saved = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert saved["init"] == checkpoint and len(saved["init_sha256"]) == 64
    good = Path(checkpoint).read_bytes()
    save_file({name: value + 1 for name, value in load_file(checkpoint).items()}, checkpoint)
    for folder in ("run", "whole"):
        with pytest.raises(ValueError, match=rf"started from {checkpoint} with sha256 {saved['init_sha256'][:12]}…, "):
            fit("noisy", asked, corpus(), tmp_path / folder)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(good)
    resumed = fit("noisy", replace(asked, init=str(moved)), corpus(), tmp_path / "run")
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ValueError, match="holds a run with init='.*', and this one has ''"):
        fit("noisy", replace(asked, init=""), corpus(), tmp_path / "run")


@pytest.mark.slow
def test_a_finished_run_does_not_need_its_checkpoint_and_is_one_itself(checkpoint, tmp_path):
    asked = recipe(**STARTED, init=checkpoint)
    whole = fit("vqgan", asked, corpus(), tmp_path / "run")
    stopped("vqgan", asked, tmp_path / "half", after=3)
    (tmp_path / "host.safetensors").unlink()
    loaded = fit("vqgan", asked, corpus(), tmp_path / "run", progress=lambda *row: pytest.fail("trained"))
    assert all(torch.equal(weights(loaded)[name], value) for name, value in weights(whole).items())
    (found,) = runs_in(tmp_path / "run", None, allow=())
    assert all(
        torch.equal(value, found.load().tokenizer.state_dict()[name])
        for name, value in whole.tokenizer.state_dict().items()
    )
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        fit("vqgan", asked, corpus(), tmp_path / "half")
    again = recipe(steps=1, init=str(tmp_path / "run"), optimizer={"learning_rate": 1e-12})
    run = fit("vqgan", again, corpus(), tmp_path / "again")
    torch.testing.assert_close(run.tokenizer.host.state_dict(), whole.tokenizer.host.state_dict())


def test_settings_of_runs_from_scratch_are_as_before(tmp_path):
    assert "init" not in recipe().to_dict() and recipe(init="a.ckpt").to_dict()["init"] == "a.ckpt"
    fit("vqgan", recipe(steps=1), corpus(), tmp_path)
    assert not {"init", "init_sha256"} & json.loads((tmp_path / "settings.json").read_text()).keys()
