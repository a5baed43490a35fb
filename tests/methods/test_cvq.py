"""CVQ against plain loops, and the hosts that it refuses. `environments/test_processes.py` tests two processes."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.small_methods import made, step_of

from tavq_plugin.methods.cvq import anchors, code_contrast


def drawn(k=3, n=40, c=4):
    g = torch.Generator().manual_seed(0)
    return torch.randn(k, c, generator=g).double(), torch.randn(n, c, generator=g).double()


@pytest.mark.parametrize("metric", ["l2", "cos"])
def test_anchors_are_drawn_by_closeness(metric):
    codebook, latents = drawn()
    for place in (0.0, 0.3, 0.99999):
        chosen = anchors(codebook, latents, torch.full((3,), place), metric=metric)
        for code, got in zip(codebook, chosen, strict=True):
            close = [
                -((code - z) ** 2).sum().item() if metric == "l2" else F.cosine_similarity(code, z, 0).item()
                for z in latents
            ]
            total = sum(map(math.exp, close))
            passed = [sum(map(math.exp, close[: i + 1])) / total > place for i in range(len(close))]
            assert torch.equal(got, latents[passed.index(True)])


def test_the_contrast_equals_a_loop_and_reaches_the_codebook_only():
    codebook, latents = drawn()
    expected = 0.0
    for code in codebook:
        similar = sorted(F.cosine_similarity(code, z, 0).item() / 0.07 for z in latents)
        nearest = sum(similar[-13:]) / 13  # 40 latents / 3 codes
        expected += math.log(math.exp(nearest) + sum(map(math.exp, similar[:20]))) - nearest
    assert code_contrast(codebook, latents).item() == pytest.approx(expected / 3)
    torch.autograd.gradcheck(lambda e: code_contrast(e, latents, temperature=0.5), codebook.requires_grad_())
    tokenizer, one = made("cvq")
    one(step_of(tokenizer))["contrast"].backward()
    assert {name for name, p in tokenizer.named_parameters() if p.grad is not None} == {
        "host.quantize.embedding.weight"
    }


def test_unused_codes_move_and_used_ones_stay():
    tokenizer, one = made("cvq", decay=0.9)
    step = step_of(tokenizer)
    before = tokenizer.adapter.codebook().detach().clone()
    one.after_update(step)
    after, latents = tokenizer.adapter.codebook().detach(), step.codes.final.latent.detach().flatten(2).mT.flatten(0, 1)
    share = torch.bincount(step.codes.final.indices.flatten(), minlength=32) / latents.shape[0]
    torch.testing.assert_close(one.usage, 0.1 * share)
    for code in range(32):
        alpha = math.exp(-10 * 32 * one.usage[code].item() / 0.1 - 1e-3)
        anchor = (after[code] - (1 - alpha) * before[code]) / alpha if alpha > 1e-3 else None
        if anchor is None:
            torch.testing.assert_close(after[code], before[code], rtol=0, atol=1e-2)
        else:
            assert (latents - anchor).norm(dim=1).min() < 1e-3 / alpha
    assert 0 < (share == 0).sum() < 32


def test_a_collapsed_codebook_is_used_again():
    tokenizer, one = made("cvq")
    with torch.no_grad():
        tokenizer.adapter.codebook()[1:] += 100.0
    used = []
    for _ in range(20):
        step = step_of(tokenizer)
        used.append(len(step.codes.final.indices.unique()))
        one.after_update(step)
    assert used[0] == 1 and used[-1] > 8


@pytest.mark.parametrize("host", ["lucidrains-vq", "lucidrains-fsq", "lucidrains-simvq"])
@pytest.mark.parametrize("name", ["cvq", "vqct"])
def test_a_codebook_that_is_not_a_parameter_is_refused(name, host):
    with pytest.raises(ValueError, match=f"{name} needs a codebook that is a parameter .* is computed, or moved by"):
        made(name, host)


@pytest.mark.parametrize("bad", [{"decay": 1.0}, {"metric": "l1"}, {"contrast": -1.0}, {"temperature": 0.0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        made("cvq", **bad)
