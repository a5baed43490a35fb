"""Tokens both ways: `tokens(images)` and `decode_tokens(indices)` take the host's own path."""

import pytest
import torch
from helpers.strange_hosts import DecodesAnother, Host, Quantizer, parse
from helpers.tiny_hosts import Autoencoder

import tavq_plugin as tavq
from tavq_plugin.types import Quantized

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def wrap(host, **settings):
    return tavq.wrap(host, **{"quantizer": "vq", "parse": parse, **settings})


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def test_tokens_decode_to_the_hosts_own_output():
    host = Host(Quantizer()).eval()
    host.vq.table.data = host.latent(IMAGES).detach().flatten(2)[0].mT[::4].clone()  # 16 codes that are in use
    tokenizer = wrap(host)
    tokens = tokenizer.tokens(IMAGES)
    assert tokens.dtype == torch.int64 and tokens.shape == (2, 8, 8) and not tokenizer.host.vq._forward_hooks
    assert torch.equal(tokens, host.vq(host.latent(IMAGES))[1]) and len(tokens.unique()) > 1
    decoded = tokenizer.decode_tokens(tokens)
    assert not decoded.requires_grad
    torch.testing.assert_close(decoded, host(IMAGES)[0].detach())
    changed = tokens.clone()
    changed[0, 0, 0] = (tokens[0, 0, 0] + 1) % 16
    assert not torch.equal(tokenizer.decode_tokens(changed)[0, :, :8, :8], decoded[0, :, :8, :8])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t + 16, r"run from \d+ to \d+, and 0 to 15 was needed"),
        (lambda t: t - 16, r"run from -\d+ to -?\d+, and 0 to 15"),
        (lambda t: t.float(), "float32 2 8 8, and whole numbers were needed"),
        (lambda t: t.flatten(1), "int64 2 64, and b h w was needed"),
    ],
)
def test_what_are_no_tokens_is_refused(change, message):
    tokenizer = wrap(Host(Quantizer()).eval())
    with pytest.raises(ValueError, match=message):
        tokenizer.decode_tokens(change(tokenizer.tokens(IMAGES)))


def test_tokens_of_sums_and_of_another_decode_are_refused_by_name():
    class Residual(Quantizer):
        def forward(self, z):
            first, indices, loss = super().forward(z)
            return first + super().forward(z - first)[0].detach(), indices, loss

    tokenizer = wrap(Host(Residual()), parse=lambda z, output: Quantized(*output, looked_up=output[0].detach()))
    with pytest.raises(ValueError, match=r"tokens cannot be decoded: .*sums of several codes.*read_tokens"):
        tokenizer.decode_tokens(tokenizer.tokens(IMAGES))
    tokenizer = wrap(DecodesAnother(Quantizer()))
    with pytest.raises(ValueError, match="decode gives another image than the host"):
        tokenizer.decode_tokens(tokenizer.tokens(IMAGES))


def test_a_host_without_a_codebook_says_so():
    host = Host(Quantizer())
    host.vq.second = torch.nn.Parameter(torch.randn(16, 16))
    tokenizer = wrap(host, codebook="own", codebook_size=16, grad_to="encoder")
    tokenizer.adapter.codebook = lambda: None
    with pytest.raises(ValueError, match="no explicit codebook"):
        tokenizer.decode_tokens(tokenizer.tokens(IMAGES))


def test_a_residual_quantizer_has_tokens_of_every_stage():
    package = pytest.importorskip("vector_quantize_pytorch")
    host = Autoencoder(package.ResidualVQ(dim=8, codebook_size=16, num_quantizers=3), tokens=True).eval()
    tokenizer, images = tavq.wrap(host), IMAGES[..., :32, :32]
    tokens = tokenizer.tokens(images)
    assert tokens.shape == (2, 8, 8, 3) and tokens.dtype == torch.int64
    torch.testing.assert_close(tokenizer.decode_tokens(tokens), host(images)[0].detach())
