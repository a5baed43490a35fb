"""One small host for every habit and fault that real code showed: wrapped right, or refused by name; no trace is left.

What is special about each is tested in the files test_strange_*.py.
"""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from helpers.conformance import texts
from helpers.strange_hosts import (
    ByMethod,
    CallsForward,
    CallsTwice,
    Drifting,
    EvalFails,
    Gumbel,
    Host,
    Projected,
    Quantizer,
    SharedDown,
    StartsItself,
    TokenHost,
    ViT,
    by_function,
    everything,
    is_equal,
    parse,
)
from torch import nn

import tavq_plugin as tavq
from tavq_plugin.hosts.codebook_drift import CodebookDrift
from tavq_plugin.types import Quantized

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


class Computed(Quantizer):
    def codes(self):
        return torch.tanh(self.table) * 2


class Buffer(Quantizer):
    def __init__(self):
        super().__init__()
        table = self.table.detach()
        del self.table
        self.register_buffer("table", table)


class TwoMatrices(Quantizer):
    def __init__(self):
        super().__init__()
        self.aside = nn.Parameter(torch.randn(16, 8))


class ProjectedTable(Quantizer):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Parameter(torch.randn(16, 4)), nn.Linear(4, 8)

    def codes(self):
        return self.out(self.table)


class Averages(Drifting):
    """Looks up a copy of its table, which each training forward moves afterwards."""

    def forward(self, z):
        output = super().forward(z)
        if self.training:
            self.copy.mul_(0.9).add_(0.1)
        return output


class Normalises(Quantizer):
    """Looks up L2-normalised rows in training mode only."""

    def codes(self):
        return F.normalize(self.table, dim=1) if self.training else self.table


class TakesADict(Host):
    def forward(self, batch, step=1):
        return super().forward(batch["image"])


class TakesMore(Host):
    def forward(self, images, *, step):
        return super().forward(images)


class OnlyEncodes(Host):
    def encode(self, images):
        return self.vq(self.latent(images))

    forward = nn.Module.forward


class DecodesTokens(Host):
    def decode(self, tokens):  # b n c
        return self.up(rearrange(tokens, "b (h w) c -> b c h w", h=8))

    def forward(self, images):
        z_q, _, loss = self.vq(self.latent(images))
        return self.up(z_q), loss


class DecodesIndices(DecodesTokens):
    def decode(self, indices):  # b h w
        return self.up(rearrange(F.embedding(indices, self.vq.codes()), "b h w c -> b c h w"))


class NoDecode(DecodesTokens):
    decode = None


class DecodesTwo(DecodesTokens):
    """A decoder of two maps, and two quantizers."""

    def __init__(self):
        super().__init__(Quantizer())
        self.fine = Quantizer()

    def maps(self, images):
        z = self.latent(images)
        return z, self.vq(z), self.fine(z + 1)

    def numbers(self, images):
        _, coarse, fine = self.maps(images)
        return torch.stack([coarse[1], fine[1]], dim=-1)

    def from_numbers(self, tokens):
        coarse, fine = (
            rearrange(part.codes()[tokens[..., i]], "b h w c -> b c h w") for i, part in enumerate((self.vq, self.fine))
        )
        return self.decode(coarse, fine)

    def decode(self, coarse, fine):
        return self.up(coarse + 2 * fine)

    def forward(self, images):
        _, coarse, fine = self.maps(images)
        return self.decode(coarse[0], fine[0]), coarse[2] + fine[2]


class TwoResolutions(Host):
    def __init__(self):
        super().__init__(Quantizer())
        self.stem, self.down = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 4, 2, 1)
        self.to_codes = nn.Conv2d(8, 8, 1)


class Video(Host):
    def __init__(self):
        super().__init__(Quantizer())
        self.stem = nn.Conv3d(3, 8, (1, 4, 4), (1, 2, 2), (0, 1, 1))
        self.down, self.to_codes = nn.Conv3d(8, 8, (1, 4, 4), (1, 2, 2), (0, 1, 1)), nn.Conv3d(8, 8, 1)

    def forward(self, video):
        if video.ndim != 5:
            raise ValueError(f"got {video.ndim} axes, and b c t h w was expected")
        z = self.latent(video)
        z_q, _, loss = self.vq(rearrange(z, "b c t h w -> (b t) c h w"))
        return self.up(z_q), loss


def with_change(change):
    return dict(parse=lambda z, output: change(parse(z, output)), taps=["stem", "down"])


LATENT = dict(parse=lambda z, output, module: Quantized(*output, latent=module.inner(z)))
OWN = dict(codebook="own", codebook_size=16, grad_to="encoder")
DICT = dict(forward=lambda images, host: host({"image": images}))
MORE = dict(forward=lambda images, host: host(images, step=0))
UP = dict(decode=lambda z_q, host: host.up(z_q))
CODES = dict(codebook=lambda host: host.vq.codes())

RIGHT = {
    "L2-normalised table": (lambda: Host(Quantizer(normalised=True)), {}),
    "projected table": (lambda: Host(ProjectedTable()), {}),
    "projected latent": (lambda: Host(Projected(), width=12), LATENT),
    "copy of the table": (lambda: Host(Drifting()), {}),
    "copy that an average moves": (lambda: Host(Averages()), {}),
    "transposed table": (lambda: Host(Quantizer(transposed=True)), {}),
    "transposed table, levels with their own": (lambda: Host(Quantizer(transposed=True)), OWN),
    "transposed square table": (lambda: Host(Quantizer(k=8, transposed=True)), {}),
    "table is a buffer": (lambda: Host(Buffer()), {}),
    "second matrix": (lambda: Host(TwoMatrices()), {}),
    "computed table": (lambda: Host(Computed()), CODES),
    "no straight-through": (lambda: Host(Quantizer(straight=False)), {}),
    "Gumbel": (lambda: Host(Gumbel()), {}),
    "starts itself": (lambda: Host(StartsItself()), {}),
    "one module, two calls": (lambda: SharedDown(Quantizer()), {}),
    "quantizer called twice": (lambda: CallsTwice(Quantizer()), dict(quantizer="vq#1")),
    "attention weights": (TokenHost, {}),
    "a method": (ByMethod, dict(quantizer="quantize")),
    "a function": (by_function, dict(quantizer="strange_functional:quantize")),
    "called by .forward": (lambda: CallsForward(Quantizer()), dict(quantizer="vq.forward")),
    "takes a dict": (lambda: TakesADict(Quantizer()), DICT),
    "takes further arguments": (lambda: TakesMore(Quantizer()), MORE),
    "quantizes in encode only": (lambda: OnlyEncodes(Quantizer()), dict(encode="encode")),
    "decode of tokens": (lambda: DecodesTokens(Quantizer()), UP),
    "decode of indices": (lambda: DecodesIndices(Quantizer()), UP | dict(decode_tokens="decode")),
    "decode of two maps": (DecodesTwo, dict(tokens="numbers", decode_tokens="from_numbers")),
    "no decode": (lambda: NoDecode(Quantizer()), UP),
    "two resolutions": (TwoResolutions, {}),
    "one resolution": (lambda: ViT(Quantizer()), {}),
    "eval fails": (lambda: EvalFails(Quantizer()), {}),
}
REFUSED = {
    "computed table, unnamed": (lambda: Host(Computed()), {}, "codebook=, a function of the host"),
    "another table in training": (lambda: Host(Normalises()), {}, "rows at the indices in training mode"),
    "no straight-through": (lambda: Host(Quantizer(straight=False)), dict(grad_to="encoder"), "not straight-through"),
    "Gumbel": (lambda: Host(Gumbel()), dict(grad_to="encoder"), "Gumbel"),
    "quantizer called twice": (lambda: CallsTwice(Quantizer()), {}, "vq#1"),
    "attention weights": (TokenHost, dict(taps=["first.weights", "second.weights"]), "no map of the image"),
    "video": (Video, dict(example=torch.rand(1, 3, 64, 64)), "b c t h w was expected"),
    "int32": (lambda: Host(Quantizer()), with_change(lambda q: q._replace(indices=q.indices.int())), "int64 2 8 8"),
    "flat": (lambda: Host(Quantizer()), with_change(lambda q: q._replace(indices=q.indices.flatten())), "int64 2 8 8"),
    "wrong": (
        lambda: Host(Quantizer()),
        with_change(lambda q: q._replace(indices=q.indices * 0)),
        "not the codebook's",
    ),
    "b h w c": (
        lambda: Host(Quantizer()),
        with_change(lambda q: q._replace(vectors=q.vectors.movedim(1, -1))),
        "they are b h w c",
    ),
}
# soft or unstarted codes, no forward, or no eval mode: their own tests look at the pictures
NOT_COMPARED = {"Gumbel", "starts itself", "quantizes in encode only", "eval fails"}


def settings_of(more):
    return {"quantizer": "vq", "parse": parse, **more}


def streams():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def attach(host, more):
    optimizer = torch.optim.Adam(host.parameters())
    return tavq.attach(host, optimizer, text_dim=6, **settings_of(more))


def runs(host, more):
    """One training forward, with its gradient, in the way that the host is run; its first output."""
    torch.manual_seed(1)
    run = more.get("forward") or getattr(type(host), "encode", lambda host, images: host(images))
    outputs = run(IMAGES, host) if "forward" in more else run(host, IMAGES)
    outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs[0]
    outputs.square().mean().backward()
    return outputs


@pytest.mark.parametrize("name", RIGHT)
def test_after_wrap_and_detach_it_is_a_copy_that_was_never_wrapped(name):
    """Parameters, buffers, attributes, hooks, flags, gradients and random streams, bit for bit; and so it trains on."""
    build, more = RIGHT[name]
    host = build()
    next(host.children()).eval()  # modes may be mixed
    bare, before = copy.deepcopy(host), streams()
    tavq.wrap(host, **settings_of(more))
    assert is_equal(everything(host), everything(bare)) and streams() == before
    align = attach(host, more)
    assert len(align.hierarchy.project) == 2
    tavq.detach(host)
    assert is_equal(everything(host), everything(bare)) and streams() == before
    assert all(p.grad is None for p in host.parameters())
    trained, as_bare = runs(host, more), runs(bare, more)
    assert torch.equal(trained, as_bare) and is_equal(everything(host), everything(bare))
    assert is_equal([p.grad for p in host.parameters()], [p.grad for p in bare.parameters()])


@pytest.mark.parametrize("name", sorted(RIGHT.keys() - NOT_COMPARED))
def test_it_gives_the_tokens_and_pictures_of_the_host(name):
    build, more = RIGHT[name]
    host = build()
    tokenizer = tavq.wrap(host, **settings_of(more))
    host.eval()
    output = (more.get("forward") or (lambda images, host: host(images)))(IMAGES, host)[0]
    tokens = tokenizer.tokens(IMAGES)
    torch.testing.assert_close(tokenizer.decode_tokens(tokens), output.detach(), rtol=1e-4, atol=1e-5)
    if "map" not in name:
        torch.testing.assert_close(tokenizer.decode(tokenizer.encode(IMAGES)), output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use", ["wrap", "attach"])
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name_without_a_trace(name, use):
    build, more, message = REFUSED[name]
    host = build()
    bare, drawn = copy.deepcopy(host), streams()
    with pytest.raises(ValueError, match=message):
        tavq.wrap(host, **settings_of(more)) if use == "wrap" else attach(host, more)
    assert is_equal(everything(host), everything(bare)) and streams() == drawn


@pytest.mark.parametrize("build", [DecodesTokens, DecodesIndices])
def test_a_decode_of_something_else_is_refused_when_it_is_called(build):
    tokenizer = tavq.wrap(build(Quantizer()), **settings_of({}))
    with pytest.raises(ValueError, match=r"(?s)decode of the quantized map, float32 \d 8 8 8, raises .*give decode="):
        tokenizer.decode(tokenizer.encode(IMAGES))


def test_own_tokens_that_decode_to_another_picture_are_refused():
    more = dict(tokens="numbers", decode_tokens=lambda tokens, host: host.from_numbers(tokens.flip(-1)))
    tokenizer = tavq.wrap(DecodesTwo(), **settings_of(more))
    with pytest.raises(ValueError, match=r"gives another image than the host"):
        tokenizer.decode_tokens(tokenizer.tokens(IMAGES))
    alone = tavq.wrap(DecodesTwo(), **settings_of(dict(tokens="numbers")))
    with pytest.raises(ValueError, match="tokens= was given alone"):
        alone.decode_tokens(alone.tokens(IMAGES))


def test_a_copy_of_the_table_that_an_average_moves_is_noticed_in_training():
    host = Host(Averages())
    align = tavq.attach(host, torch.optim.Adam(host.parameters()), text_dim=6, weight=0.1, **settings_of({}))
    align.drift = CodebookDrift(every=2)
    for _ in range(2):
        host(IMAGES), align(texts())
    with pytest.warns(UserWarning, match=r"by step 2 .* another table"):
        tavq.detach(host)
