"""Nearest codes, gradients and pooling, compared with plain computations."""

import pytest
import torch
from einops import rearrange

from tavq_plugin.hosts.hierarchy import Hierarchy
from tavq_plugin.hosts.quantization import nearest, with_gradient
from tavq_plugin.types import Quantized


def test_nearest_equals_cdist_for_every_chunk():
    torch.manual_seed(0)
    latent, codebook = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    flat = rearrange(latent, "b c h w -> (b h w) c")
    expected = torch.cdist(flat, codebook).argmin(1).view(2, 5, 6)
    for chunk in (1, 50, 10**6):
        assert torch.equal(nearest(latent, codebook, chunk=chunk), expected)


def test_nearest_searches_half_precision_in_float32():
    latent = torch.tensor([1.0, 1.004]).view(1, 1, 1, 2)
    assert nearest(latent.bfloat16(), torch.tensor([[0.9], [1.001]])).tolist() == [[[1, 1]]]


@pytest.mark.parametrize(("mode", "to"), [("encoder", (1, 0)), ("codebook", (0, 1)), ("both", (1, 1))])
def test_the_value_is_exact_and_the_gradient_goes_where_asked(mode, to):
    z = torch.randn(1, 2, 3, 3, requires_grad=True)
    e = torch.randn(1, 2, 3, 3, requires_grad=True)
    out = with_gradient(z, e, mode)
    assert torch.equal(out, e)
    grads = torch.autograd.grad(out.sum(), (z, e), allow_unused=True)
    assert [0 if g is None else g.unique().item() for g in grads] == list(to)


def test_a_large_grid_is_pooled_before_the_search():
    hierarchy = Hierarchy([3], 4, max_grid=8)
    final = Quantized(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(()))
    codes = hierarchy([torch.randn(1, 3, 32, 32)], torch.zeros(1, 4, 2, 2), final, torch.randn(5, 4))
    assert codes.levels[0].indices.shape == (1, 8, 8)


def test_a_host_without_a_codebook_needs_own_codebooks():
    hierarchy = Hierarchy([3], 4)
    final = Quantized(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(()))
    with pytest.raises(ValueError, match='codebook="own"'):
        hierarchy([torch.randn(1, 3, 8, 8)], torch.zeros(1, 4, 2, 2), final, None)


def test_the_level_loss_is_the_vq_vae_loss():
    torch.manual_seed(0)
    hierarchy = Hierarchy([3], 4, beta=0.25)
    table = torch.randn(5, 4)
    final = Quantized(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(()))
    level = hierarchy([torch.randn(1, 3, 8, 8)], torch.zeros(1, 4, 2, 2), final, table).levels[0]
    distance = sum(
        ((level.latent[0, :, i, j] - table[level.indices[0, i, j]]) ** 2).sum() for i in range(8) for j in range(8)
    ) / (4 * 64)
    torch.testing.assert_close(level.loss, 1.25 * distance)


@pytest.mark.parametrize("grad_to", ["encoder", "both"])
def test_each_side_gets_its_own_term_of_the_level_loss(grad_to):
    torch.manual_seed(0)
    hierarchy = Hierarchy([3], 4, beta=0.25, grad_to=grad_to)
    table, feature = torch.randn(5, 4, requires_grad=True), torch.randn(2, 3, 8, 8, requires_grad=True)
    final = Quantized(torch.zeros(2, 4, 2, 2), torch.zeros(2, 2, 2, dtype=torch.long), torch.zeros(()))
    level = hierarchy([feature], torch.zeros(2, 4, 2, 2), final, table).levels[0]
    chosen = table[level.indices].movedim(-1, 1)
    terms = [0.25 * (level.latent - chosen.detach()).square().mean()]
    if grad_to == "both":
        terms.append((level.latent.detach() - chosen).square().mean())
    ours, plain = (
        torch.autograd.grad(loss, (feature, table), allow_unused=True, retain_graph=True)
        for loss in (level.loss, sum(terms))
    )
    torch.testing.assert_close(ours, plain)
