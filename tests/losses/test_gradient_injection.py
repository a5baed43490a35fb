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


# additions in another order: three gradients meet at a latent, or a bias is summed over another memory layout
REORDERED = ("taming-vq", "lucidrains-residual-learnt")


def added(alignment, gradient, images):
    """The plain sum of both gradients."""
    return Balanced(gradient + alignment, torch.tensor(True), *torch.ones(2))


def patterns(codes):
    """A loss that any precision can compute: squared distances of the codes to fixed waves."""
    each = [level.quantized.flatten() for level in codes.levels]
    return sum((part - torch.arange(len(part), dtype=part.dtype).sin()).square().mean() for part in each)


def host_gradients(case, rule=None, dtype=torch.float32):
    """Gradients of the host, heads and levels: of the sum, or of the loss on copies if there is a rule."""
    model = copy.deepcopy(case.model).to(dtype)
    torch.manual_seed(3)
    tokenizer = tavq.wrap(model, **case.settings).to(dtype)
    align = tavq.TextAlignment(tokenizer, 6)
    own = [*align.parameters(), *tokenizer.hierarchy.parameters()]
    tokenizer.on_copies, figures = rule is not None, GradientFigures()
    torch.manual_seed(4)
    output, codes = tokenizer(case.images.to(dtype))
    reconstruction = output.sample if hasattr(output, "sample") else output[0]
    loss = reconstruction.square().mean() + codes.quantizer_loss
    aligned = patterns if dtype == torch.float64 else lambda codes: align(codes, texts())
    value = aligned(codes) if rule is None else align_on_copies(aligned, codes, own, rule=rule, figures=figures)
    (loss + value).backward()
    named = {**dict(model.named_parameters()), **{str(i): p for i, p in enumerate(own)}}
    return {name: p.grad for name, p in named.items() if p.grad is not None}, figures


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HOSTS)
def test_switched_off_it_equals_the_sum(name, dtype):
    """To the bit with the alignment itself, or to rounding where additions are made in another order."""
    case = build(name)
    expected, _ = host_gradients(case, dtype=dtype)
    found, _ = host_gradients(case, added, dtype=dtype)
    assert found.keys() == expected.keys() and len(found) > 15
    exact = dtype == torch.float32 and name not in REORDERED
    rounding = 0.0 if exact else 20 * torch.finfo(dtype).eps
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=rounding * value.abs().max().item(), msg=key)


@pytest.mark.parametrize("name", HOSTS)
def test_the_ratio_holds_at_every_tensor_of_every_host(name):
    case, ratios = build(name), []

    def halved(alignment, gradient, images):
        found = balance_gradient(alignment, gradient, 0.5, images=images)
        ratios.append((found.gradient - gradient).norm() / gradient.norm())
        return found

    found, figures = host_gradients(case, halved)
    expected, _ = host_gradients(case)
    assert found.keys() == expected.keys()
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert figures.values("cosine").isfinite().all() and figures.values("skipped").sum() == 0
    assert len(ratios) == len(figures.names)
    torch.testing.assert_close(torch.stack(ratios), torch.full((len(ratios),), 0.5), rtol=1e-4, atol=0)
    parameters = dict(case.model.named_parameters())  # those of the codebook, if it has any
    assert any(key in parameters for key in figures.names) == ("codebook" in case.modes)


def test_codes_without_copies_are_refused():
    case = build("taming-vq")
    tokenizer = tavq.wrap(case.model)
    _, codes = tokenizer(case.images)
    with pytest.raises(ValueError, match=r"set tokenizer.on_copies = True, or give balance=None"):
        align_on_copies(lambda codes: codes.loss, codes, [], rule=added, figures=GradientFigures())
