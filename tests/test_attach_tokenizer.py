"""`attach` on a tokenizer that `wrap` made: a loop that calls the tokenizer trains its own added levels."""

import copy

import pytest
import torch
from helpers.conformance import IMAGES, texts
from helpers.plain_training import DESCRIPTION, Plain

import tavq_plugin as tavq


def attached(tokenizer, parameters, **settings):
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    torch.manual_seed(1)
    return optimizer, tavq.attach(tokenizer, optimizer, text_dim=6, **settings)


def gradients(call, align, host):
    reconstruction, loss = call(IMAGES)[0] if isinstance(call, tavq.Tokenizer) else call(IMAGES)
    ((reconstruction - IMAGES).square().mean() + loss + align(texts())).backward()
    return {name: p.grad for name, p in [*host.named_parameters(), *align.named_parameters()]}


@pytest.mark.parametrize("settings", [{"balance": 1.0}, {"weight": 0.3}], ids=["balance", "weight"])
def test_a_loop_that_calls_the_tokenizer_gets_the_gradients_of_one_that_calls_the_host(settings):
    tokenizer = tavq.wrap(Plain(), **DESCRIPTION)
    alone = copy.deepcopy(tokenizer.host)
    _, align = attached(tokenizer, tokenizer.parameters(), **settings)
    _, expected = attached(alone, alone.parameters(), **DESCRIPTION, **settings)
    expected.load_state_dict(align.state_dict())

    assert align.hierarchy is tokenizer.hierarchy
    found, wanted = gradients(tokenizer, align, tokenizer.host), gradients(alone, expected, alone)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert value is not None and torch.equal(found[name], value), name


@pytest.mark.parametrize("heads_rate", [1.0, 3.0])
def test_parameters_that_the_optimizer_holds_are_not_added_again_and_stay_after_detach(heads_rate):
    tokenizer = tavq.wrap(Plain(), **DESCRIPTION)
    before = {id(p) for p in tokenizer.parameters()}
    optimizer, align = attached(tokenizer, tokenizer.parameters(), alignment={"heads_rate": heads_rate})
    first, heads = optimizer.param_groups
    assert {id(p) for p in first["params"]} == before
    assert {id(p) for p in heads["params"]} == {id(p) for p in align.alignment.parameters()}
    assert heads["lr"] == heads_rate * first["lr"]

    gradients(tokenizer, align, tokenizer.host)
    optimizer.step()
    tavq.detach(tokenizer)
    assert optimizer.param_groups == [first] and {id(p) for p in optimizer.state} <= before
    assert any(p in optimizer.state for p in tokenizer.hierarchy.parameters())
    tokenizer(IMAGES)  # it works on, without the attachment
    with pytest.raises(RuntimeError):
        align(texts())


def test_settings_of_wrap_are_refused_beside_a_tokenizer():
    tokenizer = tavq.wrap(Plain(), **DESCRIPTION)
    with pytest.raises(ValueError, match="attach got a tokenizer and grad_to=: give settings of wrap to wrap"):
        attached(tokenizer, tokenizer.parameters(), grad_to="encoder")


def test_a_tokenizer_and_its_host_are_one_host():
    tokenizer = tavq.wrap(Plain(), **DESCRIPTION)
    attached(tokenizer, tokenizer.parameters())
    with pytest.raises(ValueError, match="this host has an attachment already"):
        attached(tokenizer.host, tokenizer.host.parameters(), **DESCRIPTION)
    tavq.detach(tokenizer.host)
    attached(tokenizer, tokenizer.parameters())
