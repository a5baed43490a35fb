"""Hosts that are run, decode or quantize in their own way: functions and paths say how."""

import copy

import pytest
import torch
from einops import rearrange
from helpers.conformance import texts
from helpers.strange_hosts import (
    ByMethod,
    CallsForward,
    Host,
    Quantizer,
    by_function,
    everything,
    is_equal,
    nearest,
    parse,
)
from torch import nn

import tavq_plugin as tavq

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def wrap(host, **settings):
    return tavq.wrap(host, **{"quantizer": "vq", "parse": parse, **settings})


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


class TakesADict(Host):
    """Its forward takes a dict and a step; it has no decode."""

    decode = None

    def forward(self, batch, step):
        z_q, _, loss = self.vq(self.latent(batch["image"]))
        return {"image": self.up(z_q), "loss": loss * step}


class OnlyEncodes(Host):
    """Quantizes only in `encode`; its forward is empty."""

    def encode(self, images):
        return self.vq(self.latent(images))

    forward = nn.Module.forward


def test_a_forward_of_a_dict_is_given():
    host = TakesADict(Quantizer()).eval()
    tokenizer = wrap(
        host,
        forward=lambda images, host: host({"image": images}, step=0),
        decode=lambda z_q, host: host.up(z_q),
    )
    output, codes = tokenizer(IMAGES)
    assert torch.equal(output["image"], host({"image": IMAGES}, 0)["image"])
    torch.testing.assert_close(tokenizer.decode(codes), output["image"])
    torch.testing.assert_close(tokenizer.decode_tokens(tokenizer.tokens(IMAGES)), output["image"].detach())


def test_a_host_without_decode_asks_for_it():
    tokenizer = wrap(TakesADict(Quantizer()), forward=lambda images, host: host({"image": images}, step=0))
    with pytest.raises(NotImplementedError, match=r"TakesADict has no decode\(vectors\) of its own: give decode="):
        tokenizer.decode(tokenizer.encode(IMAGES))


def test_a_wrong_decode_is_refused_when_it_is_called():
    tokenizer = wrap(Host(Quantizer()), decode=lambda z_q, host: host.up(-z_q))
    with pytest.raises(ValueError, match=r"decode gives another image than the host.*give decode="):
        tokenizer.decode(tokenizer.encode(IMAGES))


@pytest.mark.parametrize("encode", ["encode", lambda images, host: host.encode(images)])
def test_a_host_that_quantizes_in_encode_only(encode):
    host = OnlyEncodes(Quantizer())
    with pytest.raises(NotImplementedError):
        wrap(host)
    tokenizer = wrap(host, encode=encode)
    assert torch.equal(tokenizer.tokens(IMAGES), host.encode(IMAGES)[1])
    twin = copy.deepcopy(tokenizer)
    with torch.no_grad():
        twin.host.to_codes.weight.normal_()
        twin.host.to_codes.bias.normal_()
    assert torch.equal(twin.tokens(IMAGES), twin.host.encode(IMAGES)[1])  # a copy runs its own host
    assert not torch.equal(twin.encode(IMAGES).final.latent, tokenizer.encode(IMAGES).final.latent)


def test_encode_of_something_else_is_refused():
    host = Host(Quantizer())
    with pytest.raises(ValueError, match=r"quantizer 'vq' never ran in the host's forward.*encode="):
        wrap(host, encode="latent")
    with pytest.raises(ValueError, match=r"encode='encoed': Host has no such method; it has decode, forward, latent"):
        wrap(host, encode="encoed")
    with pytest.raises(ValueError, match=r"encode= got .*: give the name of a method of the host, or a function"):
        wrap(host, encode=lambda: None)


CALLS = {
    "method": (ByMethod, "quantize"),
    "forward": (lambda: CallsForward(Quantizer()), "vq.forward"),
    "function": (by_function, "strange_functional:quantize"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_quantizer_that_is_no_module_is_patched_while_a_call_runs(name):
    build, path = CALLS[name]
    host = build().eval()
    before = everything(host)
    tokenizer = wrap(host, quantizer=path)
    assert is_equal(everything(host), before)
    assert tokenizer.adapter.taps == ("stem", "down") and tokenizer.hierarchy.grad_to == "both"
    codes = tokenizer.encode(IMAGES)
    torch.testing.assert_close(tokenizer.decode(codes), host(IMAGES)[0])
    torch.testing.assert_close(tokenizer.decode_tokens(tokenizer.tokens(IMAGES)), host(IMAGES)[0].detach())
    assert is_equal(everything(host), before)


@pytest.mark.parametrize("name", CALLS)
def test_a_quantizer_that_is_no_module_trains_under_attach(name):
    build, path = CALLS[name]
    host = build()
    twin = copy.deepcopy(host)
    attributes = [sorted(vars(module)) for module in host.modules()]
    optimizer = torch.optim.Adam(host.parameters(), lr=1e-3)
    align = tavq.attach(host, optimizer, text_dim=6, quantizer=path, parse=parse)
    output, own = host(IMAGES)
    assert torch.equal(output, twin(IMAGES)[0])
    assert [sorted(vars(module)) for module in host.modules()] == attributes  # put back when the pass ended
    (output.square().mean() + own + align(texts())).backward()
    assert host.stem.weight.grad.norm() > 0 and len(align.codes.levels) == 3
    copied = copy.deepcopy(host)
    copied(IMAGES)
    with pytest.raises(RuntimeError, match="no forward of the host was recorded"):
        align(texts())
    with pytest.raises(RuntimeError):  # the pass breaks off between the first tap and the quantizer
        host.down.register_forward_pre_hook(lambda module, args: torch.zeros(1).view(2))
        host(IMAGES)
    tavq.detach(host)
    assert [sorted(vars(module)) for module in host.modules()] == attributes


def test_training_code_that_calls_the_hosts_parts_is_recorded_too():
    host = ByMethod()
    optimizer = torch.optim.Adam(host.parameters(), lr=1e-3)
    align = tavq.attach(host, optimizer, text_dim=6, quantizer="quantize", parse=parse)
    z = host.latent(IMAGES)
    z_q, _, own = host.quantize(z)
    (host.decode(z_q).square().mean() + own + align(texts())).backward()
    assert host.stem.weight.grad.norm() > 0 and "quantize" not in vars(host)
    tavq.detach(host)


class Discretizer(Quantizer):
    """A quantizer by what it does; its class and path do not say so."""


class Renamed(Host):
    def __init__(self):
        super().__init__(Discretizer())
        self.middle = self.vq
        del self.vq

    def forward(self, images):
        z_q, _, loss = self.middle(self.latent(images))
        return self.decode(z_q), loss


class Inside(Host):
    """Looks its table up in forward itself, in no module or method of its own."""

    def __init__(self):
        super().__init__(nn.Identity())
        self.words = nn.Parameter(torch.randn(16, 8) * 0.3)
        del self.vq

    def forward(self, images):
        indices = nearest(self.latent(images), self.words)
        return self.decode(rearrange(self.words[indices], "b h w c -> b c h w")), self.words.sum() * 0


UNKNOWN = {
    "by behaviour": (
        Renamed,
        r"'middle' \(Discretizer, with table 16×8; .* indices and rows of 'middle.table' 16×8\)\. K",
    ),
    "by name and behaviour": (
        lambda: Host(Quantizer(transposed=True)),
        r"'vq' \(Quantizer, with table 8×16; .* rows of 'vq.table' 8×16, transposed\)\. K",
    ),
    "a method": (ByMethod, r"'quantize' \(a method; in a dry run it returned indices and rows of 'table' 16×8\)\. K"),
    "a table alone": (
        Inside,
        r"nothing looks like a quantizer\. .* rows of these tables: 'words' 16×8 \(at 'up'\)\. K",
    ),
    "called by .forward": (
        lambda: CallsForward(Quantizer()),
        r"'vq' \(Quantizer, with table 16×8\)\. A dry run showed rows of these tables: 'vq.table' 16×8 \(at 'up'\)",
    ),
    "by name alone": (
        lambda: TakesADict(Quantizer()),
        r"'vq' \(Quantizer, with table 16×8\)\. A dry run fails \(.*\), so only names were looked at\. K",
    ),
    "nothing": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(62, 4)), r"nothing looks like a quantizer\. Known"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_host_is_told_what_looks_like_a_quantizer_in_it(name):
    build, candidates = UNKNOWN[name]
    host = build()
    before = everything(host)
    with pytest.raises(ValueError, match=r"pass quantizer= .* and parse= .*In this host .*" + candidates) as raised:
        tavq.wrap(host)
    assert raised.value.args[0].rpartition(". ")[2].startswith("Known quantizers: ")  # the list comes last
    assert is_equal(everything(host), before)


def test_the_likeliest_quantizer_is_the_one_that_behaves_like_one():
    host = Renamed()
    host.quant_head = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(
        ValueError, match=r"its path, here perhaps 'middle'\).*'middle' \(.*, 'quant_head' \(Sequential"
    ):
        tavq.wrap(host)


def test_paths_that_lead_nowhere_are_refused():
    with pytest.raises(ValueError, match=r"no module 'vq\.quantise': vq holds no modules"):
        wrap(Host(Quantizer()), quantizer="vq.quantise")
    with pytest.raises(ValueError, match="the Python module 'no_such_package' .* is not imported"):
        wrap(Host(Quantizer()), quantizer="no_such_package:quantize")
    with pytest.raises(ValueError, match="the Python module 'sys' has no function 'quantize'"):
        wrap(Host(Quantizer()), quantizer="sys:quantize")
    with pytest.raises(ValueError, match="taps= got 'decode', a method"):
        wrap(Host(Quantizer()), taps=["stem", "decode"])
