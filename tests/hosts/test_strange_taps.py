"""Encoders of one or two resolutions, of tokens, or with a module that runs several times."""

import pytest
import torch
from helpers.conformance import texts
from helpers.strange_hosts import CallsTwice, Quantizer, SharedDown, TokenHost, ViT, parse

import tavq_plugin as tavq

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def wrap(host, **settings):
    return tavq.wrap(host, **{"quantizer": "vq", "parse": parse, **settings})


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def test_a_vit_of_one_resolution_is_tapped_at_a_third_and_two_thirds():
    tokenizer = wrap(ViT(Quantizer()))
    assert tokenizer.adapter.taps == ("layers.1", "layers.3") and tokenizer.adapter.layout == "b n c"
    assert tokenizer.sizes.grids == ((8, 8), (8, 8), (8, 8))


def test_a_vit_of_two_stages_is_tapped_at_its_tokens_not_its_attention():
    tokenizer = wrap(TokenHost())
    assert tokenizer.adapter.taps == ("first", "second") and tokenizer.adapter.layout == "b n c"
    assert tokenizer.sizes.grids == ((8, 8), (4, 4), (4, 4))


def test_attention_weights_named_by_hand_are_refused():
    with pytest.raises(ValueError, match=r"tap 'first\.weights' gives .* no map of the image.*layout="):
        wrap(TokenHost(), taps=["first.weights", "second.weights"])
    tokenizer = wrap(TokenHost(), taps=["first", "second"], layout="b n c")
    assert tokenizer.sizes.grids == ((8, 8), (4, 4), (4, 4))


def outputs_of(host, module, run):
    seen = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append(output))
    run()
    handle.remove()
    return seen


def test_a_module_that_runs_twice_gives_two_taps():
    host = SharedDown(Quantizer())
    tokenizer = wrap(host)
    assert tokenizer.adapter.taps == ("down#1", "down#2")
    assert tokenizer.sizes.grids == ((16, 16), (8, 8), (4, 4))
    maps = outputs_of(host, host.down, lambda: host(IMAGES))
    codes = tokenizer.encode(IMAGES)
    for level, feature, project in zip(codes.levels, maps, tokenizer.hierarchy.project, strict=False):
        torch.testing.assert_close(level.latent, project(feature))
    tokenizer = wrap(host, taps=["stem", "down#2"])
    assert tokenizer.sizes.grids == ((32, 32), (8, 8), (4, 4))
    with pytest.raises(ValueError, match=r"the host runs 'down' 2 times: name one of the calls, such as down#1"):
        wrap(host, taps=["stem", "down"])
    with pytest.raises(ValueError, match=r"never fired in the host's forward: down#3"):
        wrap(host, taps=["stem", "down#3"])
    with pytest.raises(ValueError, match="'down#x' names no call: give a number from 1"):
        wrap(host, taps=["stem", "down#x"])


def test_of_a_quantizer_that_runs_twice_one_call_is_named():
    with pytest.raises(ValueError, match=r"quantizer 'vq' runs 2 times in one forward pass.*\"vq#1\".*call it once"):
        wrap(CallsTwice(Quantizer()))
    host = CallsTwice(Quantizer())
    tokenizer = wrap(host, quantizer="vq#1")
    assert tokenizer.sizes.grids == ((32, 32), (16, 16), (8, 8))
    calls = outputs_of(host, host.vq, lambda: host(IMAGES))
    assert torch.equal(tokenizer.tokens(IMAGES), calls[0][1]) and len(calls) == 2
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(IMAGES)), host(IMAGES)[0])
    with pytest.raises(ValueError, match="input of quantizer 'vq#2' carries no gradient"):
        wrap(CallsTwice(Quantizer()), quantizer="vq#2")
    with pytest.raises(ValueError, match=r"'vq#3' never ran in the host's forward so often \(it ran 2 times\)"):
        wrap(CallsTwice(Quantizer()), quantizer="vq#3")


def test_numbered_calls_train_and_leave_no_trace():
    host = SharedDown(Quantizer())
    keys = list(host.state_dict())
    optimizer = torch.optim.Adam(host.parameters(), lr=1e-3)
    align = tavq.attach(host, optimizer, text_dim=6, quantizer="vq", parse=parse)
    for step in range(3):
        optimizer.zero_grad()
        if step == 1:  # a pass that breaks off is forgotten
            with pytest.raises(RuntimeError):
                host(IMAGES[:, :2])
            host.down(torch.zeros(1, 8, 8, 8))
        output, own = host(IMAGES)
        (output.square().mean() + own + align(texts())).backward()
        assert align.codes.levels[0].indices.shape == (2, 16, 16) and align.codes.levels[1].indices.shape == (2, 8, 8)
        optimizer.step()
    assert host.stem.weight.grad.norm() > 0
    tavq.detach(host)
    assert list(host.state_dict()) == keys
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in host.modules())
