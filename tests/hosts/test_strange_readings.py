"""Hosts that a guess by shape would get wrong: each is wrapped right, or refused with what mends it."""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from einops import rearrange
from helpers.conformance import texts
from helpers.strange_hosts import (
    CallsTwice,
    DecodesAnother,
    Drifting,
    EvalFails,
    Gumbel,
    Host,
    OnlyOneSize,
    Projected,
    Quantizer,
    SharedDown,
    StartsItself,
    TokenHost,
    everything,
    is_equal,
    parse,
)

import tavq_plugin as tavq
from tavq_plugin.hosts.codebook_drift import CodebookDrift
from tavq_plugin.types import Quantized

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
OWN = dict(codebook="own", codebook_size=16, grad_to="encoder")


def wrap(host, **settings):
    return tavq.wrap(host, **{"quantizer": "vq", "parse": parse, **settings})


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Host(StartsItself()),
        lambda: Host(Gumbel()),
        lambda: Host(Drifting()),
        lambda: EvalFails(StartsItself()),
        lambda: OnlyOneSize(StartsItself()),
        lambda: TokenHost(),
        lambda: CallsTwice(StartsItself()),
        lambda: SharedDown(Quantizer(transposed=True)),
    ],
    ids=["starts itself", "gumbel", "drifting", "eval fails", "one size", "tokens", "refused", "shared"],
)
@pytest.mark.parametrize("training", [True, False])
def test_wrapping_leaves_no_trace(build, training):
    """Parameters, buffers, attributes, flags and random streams are bit for bit as before, also if it is refused."""
    host = build().train(training)
    next(host.children()).train(not training)
    before, twin = everything(host), copy.deepcopy(host)
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    try:
        wrap(host)
    except ValueError:
        assert isinstance(host, CallsTwice)
    assert is_equal(everything(host), before)
    assert torch.equal(streams[0], torch.get_rng_state())
    assert streams[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    if not isinstance(host, TokenHost | OnlyOneSize):
        host.train(), twin.train()
        torch.manual_seed(1)
        output = host(IMAGES)
        torch.manual_seed(1)
        assert torch.equal(output[0], twin(IMAGES)[0]) and is_equal(everything(host), everything(twin))


def test_the_dry_run_sees_noise():
    host, seen = Host(Quantizer()), []
    host.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    wrap(host)
    assert seen and all(images.std() > 0.2 and images.min() >= 0 and images.max() <= 1 for images in seen)


def test_an_example_gives_the_range_of_the_noise():
    host, seen = Host(Quantizer()), []
    host.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    wrap(host, example=torch.linspace(-50, 200, 3 * 32 * 32).view(1, 3, 32, 32))
    assert all(images.min() < -40 and images.max() > 190 and images.shape[-1] == 32 for images in seen)


def test_a_host_whose_eval_mode_fails_is_read_in_training_mode():
    tokenizer = wrap(EvalFails(Quantizer()))
    assert tokenizer.adapter.taps == ("stem", "down")


def test_a_host_of_one_size_tells_it_in_its_error():
    assert wrap(OnlyOneSize(Quantizer())).sizes.grids == ((48, 48), (24, 24), (12, 12))


def test_without_straight_through_the_encoder_cannot_be_reached():
    host = Host(Quantizer(straight=False))
    with pytest.raises(ValueError, match=r'grad_to="encoder" is impossible: .*not straight-through.*z \+ \(vectors'):
        wrap(host, grad_to="encoder")
    wrap(host).encode(IMAGES).final.quantized.square().sum().backward()
    assert host.stem.weight.grad.norm() > 0 and host.vq.table.grad.norm() > 0  # "both": the plug-in's own lookup

    def straight(z, output):
        return Quantized(z + (output[0] - z).detach(), *output[1:])

    host.zero_grad()
    wrap(host, grad_to="encoder", parse=straight).encode(IMAGES).final.quantized.square().sum().backward()
    assert host.stem.weight.grad.norm() > 0 and not host.vq.table.grad


def test_gumbel_is_recognised_by_its_gradient():
    host = Host(Gumbel())
    with pytest.raises(ValueError, match=r'grad_to="encoder" is impossible on this host: .*\(Gumbel\)'):
        wrap(host, grad_to="encoder")
    tokenizer, seen = wrap(host), []
    handle = host.vq.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    codes = tokenizer.encode(IMAGES)
    handle.remove()
    assert not tokenizer.adapter.straight_through
    assert torch.equal(codes.final.quantized, seen[0])  # what the decoder reads, also while it is soft


def test_an_adapter_that_errs_about_the_gradient_is_refused():
    package = pytest.importorskip("vector_quantize_pytorch")
    from tavq_plugin.adapters.vector_quantize import SimVQQuantizer

    host = Host(package.SimVQ(8, 16, channel_first=True))
    assert tavq.wrap(host).adapter.straight_through
    before = SimVQQuantizer.straight_through
    SimVQQuantizer.straight_through = False
    try:
        with pytest.raises(ValueError, match=r"send no gradient to the codebook by themselves.*straight_through=False"):
            tavq.wrap(host)
    finally:
        SimVQQuantizer.straight_through = before


def test_a_detached_encoder_behind_given_taps_is_refused_if_it_must_learn():
    host = Host(Quantizer())
    host.to_codes.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(ValueError, match=r'grad_to="both" is impossible: .*carries no gradient.*grad_to="codebook"'):
        wrap(host, taps=["stem", "down"], grad_to="both")
    assert wrap(host, taps=["stem", "down"], grad_to="codebook").hierarchy.grad_to == "codebook"


def test_a_transposed_map_is_no_feature_map():
    class Turned(Host):
        def latent(self, images):
            return self.to_codes(self.down(self.turn(self.stem(images))).mT)

    class Turn(torch.nn.Module):
        def forward(self, x):
            return x.mT

    host = Turned(Quantizer())
    host.turn = Turn()
    with pytest.raises(ValueError, match="tap 'turn' gives .* no map of the image: new content in its left half"):
        wrap(host, taps=["turn", "down"])


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (["stem", "stem"], "taps= names 'stem' twice"),
        (["down", "stem"], r"'down' has a 16×16 grid and 'stem' a finer one, 32×32: give taps= from fine to coarse"),
        (["stem", "up"], "tap 'up' runs after the quantizer 'vq': name modules of the encoder"),
        (["aside", "down"], "the quantizer's input does not depend on 'aside'"),
    ],
)
def test_taps_that_cannot_be_right_are_refused(taps, message):
    class WithAside(Host):
        def latent(self, images):
            self.aside(images)
            return super().latent(images)

    host = WithAside(Quantizer())
    host.aside = torch.nn.Conv2d(3, 4, 4, 2, 1)
    with pytest.raises(ValueError, match=message):
        wrap(host, taps=taps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q._replace(indices=torch.zeros_like(q.indices)), "not the codebook's rows.*indices are wrong"),
        (
            lambda q: q._replace(indices=q.indices.int()),
            r"indices are int32 2 6 6, and int64 2 6 6 .*indices\.long\(\)",
        ),
        (lambda q: q._replace(indices=q.indices.flatten()), r"indices are int64 72, and int64 2 6 6"),
        (lambda q: q._replace(indices=q.indices.mT), "not the codebook's rows at the indices"),
        (lambda q: q._replace(indices=q.indices + 1), r"indices run from \d+ to \d+|not the codebook's rows"),
        (lambda q: q._replace(indices=q.indices - 20), r"indices run from -\d+ to -\d+ .*16 codes.*0 to k - 1"),
        (lambda q: q._replace(vectors=q.vectors.movedim(1, -1)), r"vectors are b h w c .*movedim\(-1, 1\)"),
        (lambda q: q._replace(vectors=q.vectors[:, :, None]), r"vectors are float32 2 8 1 6 6 for 2 images.*video"),
        (lambda q: q._replace(looked_up=q.vectors * 2), "looked_up= of parse= .* differs from the vectors"),
        (lambda q: q.vectors, r"parse= .* returned float32 2 8 6 6, and Quantized"),
    ],
    ids=["zeros", "int32", "flat", "turned", "shifted", "negative", "channels last", "video", "looked up", "no tuple"],
)
def test_a_wrong_parse_is_refused(change, message):
    """The taps are given, so that nothing is read before the check; many codes are in use."""
    with pytest.raises(ValueError, match=message):
        wrap(
            Host(StartsItself()),
            taps=["stem", "down"],
            parse=lambda z, output: change(parse(z, output)),
            example=torch.zeros(1, 3, 48, 48),
        )


def test_an_error_in_parse_is_explained():
    with pytest.raises(KeyError) as caught:
        wrap(Host(Quantizer()), taps=["stem", "down"], parse=lambda z, output: {}["ids"])
    assert "input, float32 2 8 8 8, and its output, (float32 2 8 8 8, int64 2 8 8, float32" in caught.value.__notes__[0]


def test_sums_of_codes_are_given_as_looked_up():
    """A residual quantizer of the user's own: indices of the first stage, vectors of both."""

    class Residual(Quantizer):
        def forward(self, z):
            first, indices, loss = super().forward(z)
            return first + super().forward(z - first)[0].detach(), indices, loss

    with pytest.raises(ValueError, match=r"sums of several codes .*looked_up="):
        wrap(Host(Residual()))
    tokenizer = wrap(Host(Residual()), parse=lambda z, output: Quantized(*output, looked_up=output[0].detach()))
    assert tokenizer.hierarchy.grad_to == "both"


def test_a_latent_of_another_width_is_asked_for():
    host = Host(Projected(), width=12)
    with pytest.raises(ValueError, match=r"quantized is float32 2 12 8 8 and the vectors are float32 2 8 8 8.*latent="):
        wrap(host)
    tokenizer = wrap(host, parse=lambda z, output: Quantized(*output, latent=host.vq.inner(z)))
    assert torch.isfinite(tokenizer.encode(IMAGES).final.quantized).all()


def test_a_decode_of_something_else_is_refused_when_it_is_called():
    host = DecodesAnother(Quantizer())
    tokenizer = wrap(host)  # the alignment needs no decode
    with pytest.raises(ValueError, match=r"decode gives another image than the host.*adapter for it"):
        tokenizer.decode(tokenizer.encode(IMAGES))


def test_decode_may_differ_by_a_clamp_of_the_output():
    class Clamps(Host):
        def forward(self, images):
            output, loss = super().forward(images)
            return output.clamp(0, 1), loss

    tokenizer = wrap(Clamps(Quantizer()))
    assert tokenizer.decode(tokenizer.encode(IMAGES)).shape == IMAGES.shape


def trained(host, *, every, steps, move):
    """An attachment after some steps on a host, whose tables `move` changes before each."""
    align = tavq.attach(host, torch.optim.Adam(host.parameters()), text_dim=6, weight=0.1, quantizer="vq", parse=parse)
    align.drift = CodebookDrift(every=every)
    for _ in range(steps):
        move(host.vq)
        host(IMAGES)
        align(texts())
    return align


def test_a_table_that_drifts_is_noticed_when_diagnostics_are_read():
    def drift(quantizer):
        quantizer.table.data += 0.1

    host = Host(Drifting())
    align = trained(host, every=3, steps=2, move=drift)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        align.last["alignment"]  # the check was not due yet
    drift(host.vq), host(IMAGES), align(texts())
    with pytest.warns(UserWarning, match=r"by step 3 the host's quantized vectors are no rows of its codebook"):
        align.last["alignment"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            host(IMAGES), align(texts())
        align.last["alignment"]  # said once
        tavq.detach(host)


def test_detach_says_what_nobody_read():
    host = Host(Drifting())
    trained(host, every=2, steps=3, move=lambda quantizer: quantizer.table.data.add_(0.1))
    with pytest.warns(UserWarning, match="by step 2 .* another table"):
        tavq.detach(host)


@pytest.mark.parametrize("build", [Quantizer, Gumbel, StartsItself])
def test_a_table_that_learns_does_not_drift(build):
    host = Host(build())
    align = trained(host, every=2, steps=4, move=lambda quantizer: quantizer.table.data.mul_(0.9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert align.last["alignment"].isfinite()
        tavq.detach(host)


def test_indices_and_rows_agree_at_every_place():
    tokenizer = wrap(Host(Quantizer()).eval())
    final = tokenizer.encode(IMAGES).final
    rows = rearrange(tokenizer.adapter.codebook()[final.indices], "b h w c -> b c h w")
    torch.testing.assert_close(final.quantized, rows)
