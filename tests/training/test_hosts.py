"""Other hosts: another codebase, a codebook that an EMA moves, a compiled tokenizer."""

from contextlib import nullcontext

import pytest
import torch
from helpers.strange_hosts import Host, StartsItself, everything, is_equal
from helpers.toy_corpus import AVERAGED, corpus, recipe

from tavq_plugin.training import fit
from tavq_plugin.training.build_host import refuse_resolution
from tavq_plugin.training.checkpoint import Checkpoints

DIFFUSERS = {
    "target": "diffusers.VQModel",
    "params": {
        "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [8, 8, 8], "norm_num_groups": 4, "latent_channels": 4, "vq_embed_dim": 4,
        "num_vq_embeddings": 32,
    },
}  # fmt: skip


def test_a_diffusers_host_trains(tmp_path):
    pytest.importorskip("diffusers")
    changes = {"host": DIFFUSERS, "adversarial": {"start": 1, "width": 4, "layers": 1}}
    fitted = fit("noisy", recipe(**changes), corpus(), tmp_path / "run")
    assert fitted.history[-1]["adaptive"] > 0 and fitted.history[-1]["quantizer"] > 0


def test_a_codebook_in_buffers_is_saved_and_resumed(tmp_path):
    pytest.importorskip("vector_quantize_pytorch")
    settings = recipe(host=AVERAGED, checkpoint_every=2, ema=0.5)
    whole = fit("vqgan", settings, corpus(), tmp_path / "whole", allow=["helpers"])

    def stop(done, row):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit("vqgan", settings, corpus(), tmp_path / "run", allow=["helpers"], progress=stop)
    state, _ = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    moved = state["model"]["tokenizer.host.inner.vq._codebook.embed"]
    resumed = fit("vqgan", settings, corpus(), tmp_path / "run", allow=["helpers"])
    ours, theirs = resumed.tokenizer.state_dict(), whole.tokenizer.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not torch.equal(ours["host.inner.vq._codebook.embed"], moved)
    with pytest.raises(ValueError, match="--allow its package"):
        fit("vqgan", settings, corpus(), tmp_path / "other")


def test_a_codebook_that_cannot_be_written_is_refused(tmp_path):
    pytest.importorskip("vector_quantize_pytorch")
    settings = recipe(host={"target": "helpers.toy_corpus.Tableless"}, start={"settle_share": 0.5})
    with pytest.raises(ValueError, match=r"not a table that can be written: give start\.settle_share=0"):
        fit("vqgan", settings, corpus(), tmp_path / "run", allow=["helpers"])


def test_the_tokenizer_is_compiled_by_the_recipes_backend(tmp_path):
    pytest.importorskip("taming")  # environments/test_compile.py tests that a compiled host trains the same
    with pytest.raises(torch._dynamo.exc.InvalidBackend, match="no_such_backend"):
        fit("vqgan", recipe(steps=1, compile="no_such_backend"), corpus(), tmp_path / "run")


@pytest.mark.parametrize("resolution", [64, 30])
def test_asking_a_host_for_its_resolution_leaves_it_as_it_was(resolution):
    """Its quantizer takes its table from its first call and counts calls, also in eval mode."""
    host = Host(StartsItself())
    before = everything(host)
    with pytest.raises(ValueError, match="give resolution=24") if resolution == 30 else nullcontext():
        refuse_resolution(host, resolution)
    assert is_equal(everything(host), before)
