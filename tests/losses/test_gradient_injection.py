"""A loss on detached copies: switched off, it sends every host the gradient of the plain sum."""

import copy

import pytest
import torch
from helpers.conformance import texts
from helpers.tiny_hosts import build

import tavq_plugin as tavq
from tavq_plugin.losses.gradient_balance import Balanced, balance_gradient
from tavq_plugin.losses.gradient_injection import GradientFigures, align_on_copies

# straight-through, a codebook on the unit sphere or computed, moved by EMA, without a table, and hosts whose quantizer
# passes gradient to its codebook by itself (Gumbel, projections)
HOSTS = (
    "taming-vq",
    "taming-gumbel",
    "lucidrains-vq",
    "lucidrains-vq-projected",
    "lucidrains-residual-learnt",
    "lucidrains-simvq",
    "lucidrains-fsq",
)


def added(alignment, gradient, images, level):
    """The plain sum of both gradients."""
    return Balanced(gradient + alignment, torch.tensor(True), *torch.ones(2))


def halved(alignment, gradient, images, level):
    return balance_gradient(alignment, gradient, 0.5, images=images)


def host_gradients(case, rule=None):
    """Gradients of the host, heads and levels: of the sum, or of the loss on copies if there is a rule."""
    model = copy.deepcopy(case.model)
    torch.manual_seed(3)
    tokenizer = tavq.wrap(model, **case.settings)
    align = tavq.TextAlignment(tokenizer, 6)
    own = [*align.parameters(), *tokenizer.hierarchy.parameters()]
    tokenizer.on_copies, figures = rule is not None, GradientFigures()
    torch.manual_seed(4)
    output, codes = tokenizer(case.images)
    reconstruction = output.sample if hasattr(output, "sample") else output[0]
    loss = reconstruction.square().mean() + codes.quantizer_loss
    if rule is None:
        (loss + align(codes, texts())).backward()
    else:
        value = align_on_copies(lambda codes: align(codes, texts()), codes, own, rule=rule, figures=figures)
        (loss + value).backward()
    named = {**dict(model.named_parameters()), **{str(i): p for i, p in enumerate(own)}}
    return {name: p.grad for name, p in named.items() if p.grad is not None}, figures


@pytest.mark.parametrize("name", HOSTS)
def test_switched_off_it_equals_the_sum(name):
    case = build(name)
    expected, _ = host_gradients(case)
    found, _ = host_gradients(case, added)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5 * max(1.0, value.abs().max().item()))


@pytest.mark.parametrize("name", HOSTS)
def test_every_host_can_be_balanced(name):
    case = build(name)
    found, figures = host_gradients(case, halved)
    expected, _ = host_gradients(case)
    assert found.keys() == expected.keys()
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert figures.values("cosine").isfinite().all() and figures.values("skipped").sum() == 0
    parameters = dict(case.model.named_parameters())  # those of the codebook, if it has any
    assert any(key in parameters for key in figures.names) == ("codebook" in case.modes)


def test_codes_without_copies_are_refused():
    case = build("taming-vq")
    tokenizer = tavq.wrap(case.model)
    _, codes = tokenizer(case.images)
    with pytest.raises(ValueError, match=r"set tokenizer.on_copies = True, or give balance=None"):
        align_on_copies(lambda codes: codes.loss, codes, [], rule=added, figures=GradientFigures())
