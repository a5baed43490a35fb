"""TA-VQ and its controls: the same heads and weights, and losses against plain loops."""

import re

import pytest
import torch
import torch.nn.functional as F
from helpers.small_methods import corpus, made, step_of
from helpers.tiny_hosts import tiny

from tavq_plugin.attach import attach
from tavq_plugin.losses import TextAlignment
from tavq_plugin.losses.alignment_settings import BALANCE, CONTRAST, SUM_CONTRAST, WEIGHT, AlignmentSettings
from tavq_plugin.losses.contrastive import batch_contrast
from tavq_plugin.methods import method_class
from tavq_plugin.methods.tavq_uniform_plan import independent_cost
from tavq_plugin.types import GRANULARITIES

LEVEL_WEIGHTS = AlignmentSettings().level_weights
FAMILY = ("tavq", "tavq-weighted-sum", "tavq-shuffled", "tavq-uniform-plan", "l2-distil", "infonce")


def measures(one, step):
    """For each level, the points and units of each image, all of unit length and without padding."""
    for index, (level, name) in enumerate(zip(step.codes.levels, GRANULARITIES, strict=True)):
        points, units = one.align.embed(level.quantized, index), step.texts[name]
        yield [(points[i], F.normalize(units.embeddings[i][units.mask[i]], dim=1)) for i in range(len(points))]


def test_controls_have_the_same_heads_and_weights():
    heads = [made(name)[1].align.state_dict() for name in FAMILY]
    assert all(torch.equal(heads[0][key], other[key]) for other in heads[1:] for key in heads[0])
    assert {made(name)[1].align.level_weights for name in FAMILY} == {LEVEL_WEIGHTS}


def test_the_loss_is_text_alignments_and_only_the_hosts_gradient_is_scaled():
    tokenizer, one = made("tavq", weight=0.4, weight_end=0.1)
    plain = TextAlignment(tokenizer, corpus().store.dim, level_weights=LEVEL_WEIGHTS, contrast=one.settings.contrast)
    plain.load_state_dict(one.align.state_dict())
    for number, share in ((0, 0.4), (5, 0.25), (10, 0.1)):
        step = step_of(tokenizer, number=number)
        latents = [level.latent for level in step.codes.levels]
        value, expected = one(step)["alignment"], plain(step.codes, step.texts)
        torch.testing.assert_close(value, expected)
        ours = torch.autograd.grad(value, [*latents, *one.parameters()], retain_graph=True)
        theirs = torch.autograd.grad(expected, [*latents, *plain.parameters()])
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            torch.testing.assert_close(a, b * (share if index < 3 else 1.0), rtol=1e-3, atol=1e-6)


def test_the_weight_falls_from_the_first_step_with_codes():
    tokenizer, one = made("tavq", weight=0.4)
    step = step_of(tokenizer, number=4)
    object.__setattr__(step, "first", 4)
    assert one.weight_at(step) == pytest.approx(0.4)
    _, none = made("tavq", weight=0.0, weight_end=0.5)
    assert none.weight_at(step) == 0
    _, risen = made("tavq", weight=0.4, rise=0.5)
    assert risen.weight_at(step) == 0  # new heads send nothing at first


def test_shuffled_texts_are_always_another_images():
    (host, one), (_, plain) = made("tavq-shuffled"), made("tavq")
    step = step_of(host, rows=(0, 1, 2))
    other = one.other[step.rows]
    assert sorted(one.other.tolist()) == list(range(6)) and (one.other != torch.arange(6)).all()
    swapped = step_of(host, rows=(0, 1, 2), texts=corpus().store.batch(other))
    assert torch.equal(one(step)["alignment"], plain(swapped)["alignment"])


def test_the_uniform_plan_equals_a_loop_over_codes_and_units():
    tokenizer, one = made("tavq-uniform-plan", contrast=0.0)
    step = step_of(tokenizer)
    expected = 0.0
    for weight, level in zip(LEVEL_WEIGHTS, measures(one, step), strict=True):
        costs = [((x[:, None] - y[None]) ** 2).sum(2).mean() for x, y in level]
        expected = expected + weight * sum(costs) / len(costs)
    value = one(step)["alignment"]
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    assert value > made("tavq", contrast=0.0)[1](step)["alignment"]  # it matches nothing


def test_the_independent_cost_and_its_gradient():
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, n, 4, generator=g).double().requires_grad_() for n in (5, 3))
    a, b = (F.normalize(torch.rand(2, n, generator=g).double(), p=1, dim=1) for n in (5, 3))
    for cost in ("sqeuclidean", "dot"):
        table = ((x[:, :, None] - y[:, None]) ** 2).sum(3) if cost == "sqeuclidean" else -x @ y.mT
        expected = (a[:, :, None] * b[:, None] * table).sum((1, 2))
        torch.testing.assert_close(independent_cost(x, a, y, b, cost=cost), expected)
        torch.autograd.gradcheck(lambda x, y, cost=cost: independent_cost(x, a, y, b, cost=cost), (x, y))


def test_l2_is_the_distance_of_pooled_codes_and_text():
    tokenizer, one = made("l2-distil")
    step = step_of(tokenizer)
    expected = 0.0
    for weight, level in zip(LEVEL_WEIGHTS, measures(one, step), strict=True):
        apart = [2 - 2 * F.cosine_similarity(x.mean(0), y.mean(0), dim=0) for x, y in level]
        expected = expected + weight * sum(apart) / len(apart)
    torch.testing.assert_close(one(step)["alignment"], expected, rtol=1e-4, atol=1e-5)


def test_infonce_equals_the_batch_contrast_of_each_level():
    tokenizer, one = made("infonce", temperature=0.3, contrast=0.2)
    step, expected = step_of(tokenizer), 0.0
    for index, (weight, name) in enumerate(zip(LEVEL_WEIGHTS, GRANULARITIES, strict=True)):
        points = one.align.embed(step.codes.levels[index].quantized, index)
        masses = points.new_ones(points.shape[:2])
        expected = expected + 0.2 * weight * batch_contrast(points, masses, step.texts[name], temperature=0.3)
    torch.testing.assert_close(one(step)["alignment"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["tavq", "tavq-uniform-plan"])
@pytest.mark.parametrize("on", ["pooled", "transport"])
def test_the_contrast_is_added_with_its_weight(on, name):
    tokenizer, with_it = made(name, contrast=0.5, contrast_on=on)
    step, plain = step_of(tokenizer), made(name, contrast=0.0)[1]
    apart = with_it(step)["alignment"] - plain(step)["alignment"]
    contrast = with_it.align.last["contrast"]
    assert (contrast > 0).all()
    torch.testing.assert_close(apart, 0.5 * (contrast * torch.tensor(LEVEL_WEIGHTS)).sum(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("grad_to", ["encoder", "codebook", "both"])
@pytest.mark.parametrize("balance", [None, 1.0])
@pytest.mark.parametrize("name", FAMILY)
def test_gradient_goes_where_grad_to_says(name, balance, grad_to):
    grads = []
    for aligned in (False, True):
        tokenizer, one = made(name, grad_to=grad_to, balance=balance)
        step = step_of(tokenizer)
        loss = step.reconstruction.square().mean() + step.codes.quantizer_loss
        (loss + one(step)["alignment"] if aligned else loss).backward()
        grads.append((tokenizer.host.encoder.conv_in.weight.grad, tokenizer.adapter.codebook().grad))
    reached = [not torch.equal(a, b) for a, b in zip(*grads, strict=True)]
    assert reached == [grad_to != "codebook", grad_to != "encoder"]


def test_balance_is_the_default_and_a_weight_makes_a_weighted_sum():
    for name, settings, expected in (
        ("tavq", {}, (BALANCE, 0.0)),
        ("tavq-shuffled", {}, (BALANCE, 0.0)),
        ("tavq", {"weight": 0.3}, (None, 0.3)),
        ("tavq", {"balance": None}, (None, WEIGHT)),
        ("tavq-weighted-sum", {}, (None, WEIGHT)),
        ("tavq-weighted-sum", {"weight": 0.3}, (None, 0.3)),
        ("tavq-shuffled", {"balance": [0.5, 1, 2]}, ((0.5, 1.0, 2.0), 0.0)),
    ):
        tokenizer, one = made(name, **settings)
        assert (one.settings.balance, one.settings.weight) == expected
        assert one.align.contrast == (SUM_CONTRAST if expected[0] is None else CONTRAST)
        assert tokenizer.on_copies == (expected[0] is not None)
        options = method_class(name).resolved_options(settings)
        assert {**options, "balance": expected[0]} == {**settings, "balance": expected[0]}
        assert options["balance"] == (list(expected[0]) if isinstance(expected[0], tuple) else expected[0])


def test_the_weighted_sum_is_tavq_with_no_balance():
    values = []
    for name, settings in (("tavq-weighted-sum", {}), ("tavq", {"balance": None})):
        tokenizer, one = made(name, **settings)
        step = step_of(tokenizer)
        value = one(step)["alignment"]
        values.append((value, *torch.autograd.grad(value, [level.latent for level in step.codes.levels])))
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))


def test_bad_settings_are_refused():
    for settings, said in (
        ({"weight": -1.0}, "weight must be 0 or more"),
        ({"weight_end": float("nan")}, "weight_end must be 0 or more"),
        ({"weight_end": 0.1}, re.escape(f"got weight_end=0.1 and balance={BALANCE}: give balance=None")),
        ({"balance": 1.0, "weight": 0.2}, "got weight=0.2 and balance=1.0: give balance=None"),
        ({"balance": [1.0, 2.0]}, "balance has 2 entries for 3 levels"),
        ({"grad_to": "decoder"}, "grad_to='decoder'"),
        ({"solver": "simplex"}, "solver='simplex'"),
        ({"contrast_on": "words"}, "contrast_on='words'"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"granularities": ("word", "word")}, "3 entries for 2 levels"),
    ):
        with pytest.raises(ValueError, match=said):
            tokenizer, one = made("tavq", **settings)
            one(step_of(tokenizer))  # an unknown solver is refused only when it is called
    with pytest.raises(ValueError, match='grad_to="both" is impossible on this host'):
        made("tavq", "lucidrains-vq", grad_to="both")


def test_the_papers_plain_reading_is_a_preset_of_tavq():
    tokenizer, paper = made("tavq-paper")
    same = dict(
        balance=None, weight=0.2, weight_end=0.2, level_weights=[1, 1, 1], distribution="gaussian", contrast=0.0
    )
    other, one = made("tavq", **same)
    values = []
    for host, method in ((tokenizer, paper), (other, one)):
        torch.manual_seed(0)  # samples are drawn
        values.append(method(step_of(host, number=9))["alignment"])
    assert torch.equal(*values)
    step = step_of(tokenizer, number=9)
    assert paper.weight_at(step) == paper.weight_at(step_of(tokenizer, number=0)) == 0.2  # constant
    assert made("tavq-paper", weight_end=0.0)[1].settings.weight_end == 0
    assert method_class("tavq-paper").resolved_options({}) == {"balance": None}
    with pytest.raises(TypeError, match="strength"):
        made("tavq-paper", strength=1)


def test_alignment_every_second_step_has_twice_the_gradient():
    tokenizer, always = made("tavq", weight=0.2)
    sometimes = made("tavq", weight=0.2, every=2)[1]
    grads = []
    for one in (always, sometimes):
        step = step_of(tokenizer, number=5)
        grads.append(torch.autograd.grad(one(step)["alignment"], step.codes.levels[0].latent)[0])
    torch.testing.assert_close(grads[1], 2 * grads[0])
    assert sometimes(step_of(tokenizer, number=4)) == {}
    with pytest.raises(ValueError, match="every"):
        made("tavq", every=0)


@pytest.mark.parametrize("number", [0, 4])
@pytest.mark.parametrize("settings", [{"weight": 0.3}, {"balance": 1.0}], ids=lambda s: next(iter(s)))
def test_attach_gives_the_methods_loss_and_gradients_to_the_bit(settings, number):
    """As examples/plain_loop.py attaches, and as the trainer sums its terms; 10 steps are what `step_of` says."""
    tokenizer, one = made("tavq", **settings)
    step = step_of(tokenizer, number=number)
    theirs = step.codes.loss + one(step)["alignment"]
    torch.manual_seed(1)
    host = tiny("taming-vq")
    optimizer = torch.optim.Adam(host.parameters())
    align = attach(host, optimizer, store=corpus().store, total_steps=10, **settings)
    align.hierarchy.load_state_dict(tokenizer.hierarchy.state_dict())
    align.alignment.load_state_dict(one.align.state_dict())
    for _ in range(number):
        optimizer.step()
    reconstruction, quantizer_loss = host(step.images)
    ours = align(step.rows.tolist())
    assert torch.equal(ours, theirs)
    (step.reconstruction.square().mean() + step.codes.quantizer_loss + theirs).backward()
    (reconstruction.square().mean() + quantizer_loss + ours).backward()
    pairs = [(tokenizer.host, host), (tokenizer.hierarchy, align.hierarchy), (one.align, align.alignment)]
    for a, b in [pair for one_pair in pairs for pair in zip(*(m.named_parameters() for m in one_pair), strict=True)]:
        assert (a[1].grad is None) == (b[1].grad is None), a[0]
        assert a[1].grad is None or torch.equal(a[1].grad, b[1].grad), a[0]
    assert host.encoder.conv_in.weight.grad.norm() > 0
