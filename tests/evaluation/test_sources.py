"""What `tavq evaluate` takes: a user's own tokenizer, which stays as it was, and finished runs of our commands."""

import shutil
from copy import deepcopy

import pytest
import torch
from helpers.toy_corpus import corpus, recipe, stopped

from tavq_plugin.cli.demo_folder import save_run
from tavq_plugin.evaluation.sources.finished_runs import unfinished_runs
from tavq_plugin.evaluation.sources.read_sources import read_sources, refuse_images, refuse_text_width
from tavq_plugin.hosts.tokenizer import wrap
from tavq_plugin.io.atomic import save_json
from tavq_plugin.training import fit
from tavq_plugin.training.build_host import small_vqgan

pytest.importorskip("taming")
pytest.importorskip("accelerate")
SETUP = """
import sys
import torch, tavq_plugin as tavq
from torch import nn
from helpers.tiny_hosts import tiny

def plain():
    return tiny("taming-vq")

def attached():
    host = tiny("taming-vq")
    optimizer = torch.optim.Adam(host.parameters())
    return host, optimizer, tavq.attach(host, optimizer, text_dim=6)

def attached_alone():
    return attached()[:2]

def tokenizer():
    tokenizer = tavq.wrap(tiny("taming-vq"), log_summary=False)
    return tokenizer, None, tavq.TextAlignment(tokenizer, 6)

def levels_lost():
    host = tiny("taming-vq")
    return host, None, tavq.TextAlignment(tavq.wrap(host, log_summary=False), 6)

def of_another_host():
    return tiny("taming-vq"), None, attached()[2]

def no_quantizer():
    return nn.Conv2d(3, 3, 3)

def no_module():
    return 3

def no_heads():
    return tiny("taming-vq"), None, "align"

def broken():
    raise KeyError("codebook")

def script():
    sys.exit("usage: train.py DATA")
"""


@pytest.fixture(scope="module")
def setup_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("mine") / "my_setup.py"
    path.write_text(SETUP)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A comparison's folder with two finished runs and one that was stopped."""
    out = tmp_path_factory.mktemp("comparison")
    (out / "shared.json").write_text("{}")
    save_json(out / "compare.json", {"methods": {"vqgan": {}, "tavq": {}}})
    fit("vqgan", recipe(steps=2), corpus(), out / "vqgan" / "seed0")
    fit("tavq", recipe(steps=2, seed=1), corpus(), out / "tavq" / "seed1")
    stopped("vqgan", recipe(steps=2, seed=1), out / "vqgan" / "seed1", after=1)
    return out


def images(n=2, side=32):
    return torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_a_plain_host_is_wrapped_and_has_no_levels_of_its_own(setup_file):
    (source,) = read_sources([f"{setup_file}:plain"])
    assert (source.name, source.seed) == ("my_setup", 0) and not source.load().own_levels
    refuse_images(source, 32)
    refuse_text_width(source, 384)  # it has no heads
    (named,) = read_sources([f"mine={setup_file}:plain"])
    assert named.name == "mine" and named.settings(images()) == source.settings(images())


def test_the_users_host_is_left_as_it_was(setup_file):
    (source,) = read_sources([f"{setup_file}:attached"])
    tokenizer, align, own_levels = source.load()
    host, attachment = tokenizer.host, source.attachment
    assert own_levels and tokenizer.hierarchy is attachment.hierarchy and align is attachment.alignment
    host.train()
    before = deepcopy(host.state_dict())
    hooks = {name: len(module._forward_hooks) for name, module in host.named_modules()}
    state, last = torch.get_rng_state(), align.last
    with source.quiet():
        assert not host.training
        align(tokenizer.encode(torch.rand(2, 3, 32, 32)), corpus().store.batch([0, 1]))
    assert all(module.training for module in host.modules()) and align.last is last
    assert attachment.recorder.live and attachment.recorder.seen == {}
    assert {name: len(module._forward_hooks) for name, module in host.named_modules()} == hooks
    assert host.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    host(torch.rand(2, 3, 32, 32))  # training goes on
    assert attachment(corpus().store.batch([0, 1])).requires_grad


def test_an_attachment_that_the_function_did_not_return_is_found(setup_file):
    (source,) = read_sources([f"{setup_file}:attached_alone"])
    assert source.attachment is not None and source.load().own_levels


def test_a_tokenizer_is_taken_as_it_is(setup_file):
    (source,) = read_sources([f"{setup_file}:tokenizer"])
    tokenizer, align, own_levels = source.load()
    assert own_levels and align.text_dim == 6 and tokenizer.code_width == 8
    refuse_text_width(source, 6)
    with pytest.raises(ValueError, match=r"alignment of width 6, and the texts here .* width 384 .*text_dim=384"):
        refuse_text_width(source, 384)


def test_a_changed_weight_changes_what_results_depend_on(setup_file):
    (source,) = read_sources([f"{setup_file}:plain"])
    before = source.settings(images())
    assert source.settings(images()) == before
    with torch.no_grad():
        source.load().tokenizer.host.decoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    assert source.settings(images()) != before


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("levels_lost", "return the tokenizer of tavq.wrap in the host's place"),
        ("of_another_host", "the attachment of another host: return those of one host"),
        ("no_quantizer", "Conv2d cannot be read as a VQ tokenizer .*tavq doctor shows what is missing"),
        ("no_module", "returned a int: return the host"),
        ("no_heads", "returned a str as its third value"),
        ("broken", "broken raised KeyError: 'codebook'"),
        ("script", "raised SystemExit: usage: train.py DATA"),
        ("none", "has no function 'none'; it has .*plain"),
    ],
)
def test_what_a_function_must_not_do_is_refused_with_the_fix(setup_file, function, words):
    with pytest.raises(ValueError, match=words):
        read_sources([f"{setup_file}:{function}"])


def test_a_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "my_neighbour.py").write_text("from helpers.tiny_hosts import tiny")
    (tmp_path / "a setup.py").write_text(
        "def build():\n    import my_neighbour\n    return my_neighbour.tiny('taming-vq')"
    )
    (source,) = read_sources([f"{tmp_path}/a setup.py:build"])
    assert source.name == "a-setup"


def test_a_resolution_that_the_host_cannot_take_is_refused(setup_file):
    (source,) = read_sources([f"{setup_file}:plain"])
    with pytest.raises(ValueError, match=r"returns \(1, 3, 16, 16\) for images of \(1, 3, 18, 18\): give the --resol"):
        refuse_images(source, 18)


def test_a_finished_run_is_loaded_with_its_weights(runs):
    (source,) = read_sources([str(runs / "tavq" / "seed1")])
    assert (source.name, source.seed, source.recipe.resolution) == ("tavq", 1, 16)
    assert source.speed.keys() == {"seconds_per_step", "plugin_share"} and source.trained_on["n_train"] == 8
    state = torch.get_rng_state()
    tokenizer = source.load().tokenizer
    assert torch.equal(state, torch.get_rng_state())
    trained = fit("tavq", recipe(steps=2, seed=1), corpus(), runs / "tavq" / "seed1").tokenizer  # only read
    assert tokenizer.state_dict().keys() == trained.state_dict().keys()
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in tokenizer.state_dict().items())
    assert not tokenizer.training


def test_a_comparison_stands_for_its_finished_runs(runs):
    found = read_sources([str(runs)])
    assert [(run.name, run.seed) for run in found] == [("vqgan", 0), ("tavq", 1)]  # as in the comparison's table
    assert unfinished_runs(runs) == [runs / "vqgan" / "seed1"]
    with pytest.raises(ValueError, match=r"mine=.*which have their own names"):
        read_sources([f"mine={runs}"])


def test_a_run_of_the_demo_is_loaded(tmp_path):
    tokenizer = wrap(small_vqgan(32), max_grid=16)
    settings = {"run": "lambda-0", "seed": 3, "steps": 1, "resolution": 32}
    metrics = {"seconds_per_step": 0.1, "plugin_share": 0.2}
    save_run(tmp_path / "lambda-0", tokenizer, None, settings, metrics)
    (tmp_path / "demo.json").write_text("{}")
    (source,) = read_sources([str(tmp_path)])
    assert (source.name, source.seed, source.trained_on) == ("lambda-0", 3, None) and source.speed == metrics
    loaded = source.load().tokenizer.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in tokenizer.state_dict().items())


def test_folders_that_hold_no_finished_run_are_refused(runs, tmp_path):
    with pytest.raises(ValueError, match=r"seed1 is not finished: give the command that made it again"):
        read_sources([str(runs / "vqgan" / "seed1")])
    with pytest.raises(ValueError, match=r"is no run: it has neither settings.json"):
        read_sources([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"nowhere is neither a folder nor file.py:function"):
        read_sources(["nowhere"])
    with pytest.raises(ValueError, match="nothing to evaluate"):
        read_sources([])
    with pytest.raises(ValueError, match=r"are both vqgan, seed 0: name one of them, as in OTHER="):
        read_sources([str(runs), str(runs / "vqgan" / "seed0")])
    copy = shutil.copytree(runs / "vqgan" / "seed0", tmp_path / "copy")
    (copy / "host.safetensors").write_bytes((runs / "vqgan" / "seed0" / "tavq.safetensors").read_bytes())
    (source,) = read_sources([str(copy)])
    with pytest.raises(ValueError, match="do not fit the host in its settings.json"):
        source.load()
    (copy / "tavq.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no tavq.safetensors"):
        read_sources([str(copy)])


def test_a_target_outside_the_allowed_packages_is_refused(runs, tmp_path):
    copy = shutil.copytree(runs / "vqgan" / "seed0", tmp_path / "copy")
    text = (copy / "settings.json").read_text()
    assert "tavq_plugin.adapters.taming.VQGAN" in text
    (copy / "settings.json").write_text(
        text.replace("tavq_plugin.adapters.taming.VQGAN", "helpers.toy_corpus.Averaged")
    )
    with pytest.raises(ValueError, match=r"settings.json: host.target 'helpers.* is outside the allowed packages"):
        read_sources([str(copy)])
