"""CVQ against plain loops, and the hosts that it refuses. `environments/test_processes.py` tests two processes."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.small_methods import made, step_of

from tavq_plugin.methods import method_class
from tavq_plugin.methods.cvq import anchors, code_contrast
from tavq_plugin.moved import written_settings


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
    tokenizer, one = made("cvq", contrast=1.0)
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


def test_one_update_equals_the_releases_equations():
    """`quantise.py` at 04864b7 as the README trains: cosines, closest anchors, no contrast; usage is 0 before it."""
    tokenizer, one = made("cvq")
    step = step_of(tokenizer)
    z = step.codes.final.latent.detach().movedim(1, 3).reshape(-1, 8)
    e = tokenizer.adapter.codebook().detach().clone()
    assert one(step) == {}
    one.after_update(step)
    d = (z / z.norm(dim=1, keepdim=True)) @ (e / e.norm(dim=1, keepdim=True)).T
    closest = z[d.sort(dim=0).indices[-1, :]]
    probability = torch.stack([(step.codes.final.indices == k).float().mean() for k in range(32)])
    probability = 0.99 * 0 + (1 - 0.99) * probability
    decay = torch.exp(-(probability * 32 * 10) / (1 - 0.99) - 1e-3)[:, None]
    torch.testing.assert_close(tokenizer.adapter.codebook(), e * (1 - decay) + closest * decay, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", ["l2", "cos"])
def test_without_a_draw_the_anchor_is_the_closest_latent(metric):
    codebook, latents = drawn()
    for code, got in zip(codebook, anchors(codebook, latents, None, metric=metric), strict=True):
        far = (latents - code).norm(dim=1) if metric == "l2" else -F.cosine_similarity(latents, code[None], 1)
        assert torch.equal(got, latents[far.argmin()])


def test_the_contrast_equals_the_releases_equation():
    codebook, z = (x.float() for x in drawn(k=6, n=48, c=4))
    d = (z / z.norm(dim=1, keepdim=True)) @ (codebook / codebook.norm(dim=1, keepdim=True)).T
    ordered = d.sort(dim=0).values
    positive, negative = ordered[-max(1, int(48 / 6)) :].mean(0, keepdim=True), ordered[: int(48 / 2)]
    logits = torch.cat([positive, negative]).T / 0.07
    expected = (logits.exp().sum(1).log() - logits[:, 0]).mean()
    torch.testing.assert_close(code_contrast(codebook, z), expected, rtol=1e-5, atol=0)


def test_the_recipes_restarts_are_off_unless_asked_for_and_a_run_from_before_has_them():
    cls = method_class("cvq")
    assert not cls.takes_restarts(cls.resolved_options({})) and cls.takes_restarts({"restarts": True})
    before = written_settings({"method": "cvq", "options": {"contrast": 0.5}})["options"]
    assert before == {"anchor": "probrandom", "metric": "l2", "contrast": 0.5, "restarts": True}
    assert cls.resolved_options({}, before) == before
    now = cls.resolved_options({"metric": "l2"})
    assert now["metric"] == "l2" and written_settings({"method": "cvq", "options": now})["options"] == now


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


@pytest.mark.parametrize(
    "bad", [{"decay": 1.0}, {"metric": "l1"}, {"anchor": "random"}, {"contrast": -1.0}, {"temperature": 0.0}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        made("cvq", **bad)
