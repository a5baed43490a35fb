"""The conformance suite on hosts from checkouts; TAVQ_HOSTS names their folder."""

import os

import pytest
import torch
from einops import rearrange
from helpers.checkouts import CHECKOUTS, build
from helpers.checkouts_by_parse import unitok, whole_unitok
from helpers.conformance import *  # noqa: F403

import tavq_plugin as tavq

if not os.environ.get("TAVQ_HOSTS"):
    pytest.skip("TAVQ_HOSTS names no folder of checkouts (owner+name each)", allow_module_level=True)


@pytest.fixture(params=sorted(CHECKOUTS))
def case(request):
    return build(request.param)


def test_several_codebooks_of_unitok_are_one_level():
    """There is no single table, so the added levels have their own; the host's picture stays."""
    case = unitok(2)
    host = case.model.eval()
    with pytest.raises(ValueError, match='codebook="own"'):
        tavq.wrap(host)
    tokenizer = tavq.wrap(host, codebook="own", codebook_size=32, grad_to="encoder")
    output, codes = tokenizer(case.images)
    parts = zip(host.vq.codebooks, halves(host, case.images), strict=True)
    rows = [part.codebook(part.f_to_idx(latent)) for part, latent in parts]
    expected = rearrange(torch.cat(rows, -1), "b (h w) c -> b c h w", h=8)
    torch.testing.assert_close(codes.final.quantized, expected)
    torch.testing.assert_close(tokenizer.decode(codes), output[0])
    tokens = tokenizer.tokens(case.images)
    assert tokens.shape == (2, 8, 8, 2)
    torch.testing.assert_close(tokenizer.decode_tokens(tokens), output[0].detach())


@pytest.mark.slow
@pytest.mark.parametrize("build_whole", [pytest.param(whole_unitok, id="unitok-whole")])
def test_a_host_too_large_for_the_suite(build_whole):
    """Wrapped by its forward and decode: the tokens and the picture are its own, and each level trains its stem."""
    case = build_whole()
    host = case.model.eval()
    tokenizer = tavq.wrap(host, **case.settings)
    assert [grid[0] for grid in tokenizer.sizes.grids] == list(case.grids)
    with torch.no_grad():
        expected = case.run(host, case.images)[0]
        tokens = tokenizer.tokens(case.images)
        assert torch.equal(tokens, case.own_tokens(host, case.images))
        torch.testing.assert_close(tokenizer.decode_tokens(tokens), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(tokenizer.decode(tokenizer.encode(case.images)), expected, rtol=1e-3, atol=1e-3)
    stem = next(p for p in host.encoder.parameters() if p.ndim == 4)
    for level in tokenizer.encode(case.images).levels:
        (gradient,) = torch.autograd.grad(level.quantized.square().sum(), [stem], retain_graph=True)
        assert gradient.norm() > 0


def halves(host, images):
    """What each of the two codebooks of an `Autoencoder` gets; b 3 h w -> two of b n c."""
    latent = host.to_codes(host.second(host.first(host.stem(images))))
    return rearrange(latent, "b c h w -> b (h w) c").chunk(2, dim=-1)
