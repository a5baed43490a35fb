"""Codebooks that are no plain k × c parameter: found by trying them against the vectors, or named in codebook=."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from helpers.strange_hosts import Host, Quantizer, nearest, parse
from torch import nn

import tavq_plugin as tavq
from tavq_plugin.types import Quantized

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def wrap(host, **settings):
    return tavq.wrap(host, **{"quantizer": "vq", "parse": parse, **settings})


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


class Other(Quantizer):
    """Looks up what `make` makes of the module."""

    def __init__(self, make, **parts):
        super().__init__()
        del self.table
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.make = make

    def codes(self):
        return self.make(self)


def spread(k=16, c=8):
    """Codes of which many are in use, as latents of noise are small."""
    return torch.randn(k, c) * 0.3


TABLES = {
    "transposed": (lambda: Quantizer(transposed=True), "shared 16×8 (table, transposed)", "both"),
    "square, transposed": (lambda: Quantizer(k=8, transposed=True), "shared 8×8 (table, transposed)", "both"),
    "normalised": (lambda: Quantizer(normalised=True), "shared 16×8 (table, L2-normalised)", "both"),
    "a buffer": (lambda: Other(lambda m: m.embed, embed=spread()), "shared 16×8 (embed)", "encoder"),
    "a transposed buffer with one codebook": (
        lambda: Other(lambda m: m.embed[0].T, embed=spread().T[None].contiguous()),
        "shared 16×8 (embed, transposed)",
        "encoder",
    ),
    "two matrices": (
        lambda: Other(lambda m: m.codes_, other=nn.Parameter(spread()), codes_=nn.Parameter(spread())),
        "shared 16×8 (codes_)",
        "both",
    ),
    "projected": (
        lambda: Other(lambda m: m.out(m.embed.weight), embed=nn.Embedding(16, 4), out=nn.Linear(4, 8)),
        "shared 16×8 (embed.weight, through out)",
        "both",
    ),
    "normalised, then projected by a convolution": (
        lambda: Other(
            lambda m: m.out(F.normalize(m.embed.weight, dim=1)[..., None, None])[..., 0, 0],
            embed=nn.Embedding(16, 4),
            out=nn.Conv2d(4, 8, 1),
        ),
        "shared 16×8 (embed.weight, L2-normalised, through out)",
        "both",
    ),
    "an average beside a parameter": (
        lambda: Other(lambda m: m.average, embed=nn.Parameter(spread()), average=spread()),
        "shared 16×8 (average)",
        "encoder",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_table_is_found_named_and_used(name):
    build, summary, grad_to = TABLES[name]
    host = Host(build()).eval()
    tokenizer = wrap(host)
    assert summary in str(tokenizer) and tokenizer.hierarchy.grad_to == grad_to
    codes = tokenizer.encode(IMAGES)
    table = host.vq.codes()
    torch.testing.assert_close(tokenizer.adapter.codebook(), table)
    for level in codes.levels:
        rows = rearrange(table[level.indices], "b h w c -> b c h w")
        torch.testing.assert_close(level.quantized, rows, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokenizer.decode_tokens(tokenizer.tokens(IMAGES)), host(IMAGES)[0].detach())


def test_a_found_table_is_the_live_one_and_learns():
    host = Host(Quantizer(normalised=True))
    tokenizer = wrap(host)
    with torch.no_grad():
        host.vq.table.normal_()
    table = F.normalize(host.vq.table, dim=1)
    torch.testing.assert_close(tokenizer.adapter.codebook(), table)
    tokenizer.encode(IMAGES).levels[0].quantized.square().sum().backward()
    sent = host.vq.table.grad
    host.zero_grad()
    (tokenizer.encode(IMAGES).levels[1].quantized[:, :1]).sum().backward()
    assert sent is not None and host.vq.table.grad.norm() > 0 and host.stem.weight.grad.norm() > 0


class Computed(Quantizer):
    """A table that no tensor holds."""

    def codes(self):
        return torch.tanh(self.table) * 2


def test_a_computed_table_is_refused_until_codebook_gives_it():
    with pytest.raises(ValueError, match=r"not the codebook's rows.*give codebook=, a function of the host"):
        wrap(Host(Computed()))
    host = Host(Computed())
    tokenizer = wrap(host, codebook=lambda host: host.vq.codes())
    assert "shared 16×8 (by codebook=)" in str(tokenizer)
    codes = tokenizer.encode(IMAGES)
    rows = rearrange(host.vq.codes()[codes.levels[0].indices], "b h w c -> b c h w")
    torch.testing.assert_close(codes.levels[0].quantized, rows)
    codes.levels[0].quantized[:, 0].sum().backward()
    assert host.vq.table.grad.norm() > 0


def test_a_path_names_the_table_and_its_form_is_found():
    host = Host(Quantizer(transposed=True))
    host.vq.other = nn.Parameter(torch.randn(8, 16))
    assert "shared 16×8 (vq.table, transposed)" in str(wrap(host, codebook="vq.table"))
    with pytest.raises(ValueError, match=r"vectors have width 8 and its codebook 16"):
        wrap(host, codebook="vq.other")


@pytest.mark.parametrize(
    ("codebook", "message"),
    [
        ("vq.tabel", r"codebook='vq.tabel': Host holds no such tensor; its matrices are vq\.table"),
        ("stem", r"codebook='stem' gives float32 8 3 4 4, and a floating-point matrix k c was needed"),
        (lambda host: None, "codebook=the function gives None"),
        (lambda host: host.vq.table + 1, "the vectors are not the codebook's rows at the indices"),
    ],
)
def test_a_codebook_that_is_none_is_refused(codebook, message):
    with pytest.raises(ValueError, match=message):
        wrap(Host(Quantizer()), codebook=codebook)


def test_attach_takes_a_codebook_by_function():
    host = Host(Computed())
    optimizer = torch.optim.Adam(host.parameters())
    align = tavq.attach(host, optimizer, text_dim=6, quantizer="vq", parse=parse, codebook=lambda host: host.vq.codes())
    assert align.hierarchy.codebook == "shared" and align.hierarchy.grad_to == "both"
    tavq.detach(host)


def test_parse_may_take_the_module():
    class Bare(Quantizer):
        """Returns the indices alone."""

        def forward(self, z):
            return nearest(z, self.table)

    class Looks(Host):
        def forward(self, images):
            z = self.latent(images)
            rows = rearrange(self.vq.table[self.vq(z)], "b h w c -> b c h w")
            return self.up(z + (rows - z).detach()), z.new_zeros(())

    def read(z, indices, module):
        rows = rearrange(module.table[indices], "b h w c -> b c h w")
        return Quantized(z + (rows - z).detach(), indices, z.new_zeros(()))

    host = Looks(Bare()).eval()
    tokenizer = wrap(host, parse=read)
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(IMAGES)), host(IMAGES)[0])


class Product(nn.Module):
    """Two codebooks, one for each half of the channels."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ParameterList(nn.Parameter(torch.randn(16, 4) * 0.3) for _ in range(2))

    def forward(self, z):
        indices = [nearest(half, table) for half, table in zip(z.chunk(2, 1), self.tables, strict=True)]
        q = torch.cat([rearrange(t[i], "b h w c -> b c h w") for t, i in zip(self.tables, indices, strict=True)], 1)
        return z + (q - z).detach(), torch.stack(indices, -1), (q - z.detach()).square().mean()


def parse_product(z, output, module):
    """One level of concatenated vectors; the indices are the first codebook's."""
    vectors, indices, loss = output
    rows = [rearrange(t[indices[..., i]], "b h w c -> b c h w") for i, t in enumerate(module.tables)]
    return Quantized(vectors, indices[..., 0], loss, looked_up=torch.cat(rows, 1))


def test_several_codebooks_are_one_level_of_concatenated_vectors():
    own = dict(codebook="own", codebook_size=16)
    with pytest.raises(ValueError, match=r"no explicit codebook \(k c\): give codebook=.*codebook=\"own\""):
        wrap(Host(Product()), parse=parse_product)
    host = Host(Product()).eval()
    tokenizer = wrap(host, parse=parse_product, grad_to="both", **own)
    codes = tokenizer.encode(IMAGES)
    torch.testing.assert_close(tokenizer.decode(codes), host(IMAGES)[0])
    codes.final.quantized[:, 0].sum().backward()
    assert host.vq.tables[0].grad.norm() > 0 and host.stem.weight.grad.norm() > 0
    with pytest.raises(ValueError, match="tokens cannot be decoded"):
        tokenizer.decode_tokens(tokenizer.tokens(IMAGES))
    for grad_to in ("encoder", "both"):
        with pytest.raises(ValueError, match="looked_up= of parse= .* differs from the vectors"):
            wrap(
                host,
                parse=lambda z, output, module: parse_product(z, output, module)._replace(looked_up=output[0] * 2),
                grad_to=grad_to,
                **own,
            )
