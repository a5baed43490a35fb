"""torch.compile: an attachment before the first compiled call works; a later one works or raises an error."""

import pytest
import torch
from helpers.plain_training import DESCRIPTION, IMAGES, Plain, attached, gradients, one_step, own_loss, parse

import tavq_plugin as tavq

BACKEND = "aot_eager"  # needs no compiler on the machine; tracing, guards and hooks are as with inductor


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients_without_compile():
    host = Plain()
    _, align = attached(host)
    return one_step(host, align)


def assert_close(ours, expected):
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_attaching_before_the_first_call_gives_the_same_gradients():
    host = Plain()
    compiled = torch.compile(host, backend=BACKEND)
    optimizer, align = attached(compiled)
    expected = gradients_without_compile()
    for training in (True, False, True):  # the evaluation pass between them compiles anew
        compiled.train(training)
        optimizer.zero_grad()
        if training:
            assert_close(one_step(host, align, compiled), expected)
        else:
            with torch.no_grad():
                compiled(IMAGES)
    tavq.detach(compiled)
    compiled(IMAGES)
    assert align.recorder.seen == {}


def test_attaching_after_the_first_call_works_or_raises():
    host = Plain()
    compiled = torch.compile(host, backend=BACKEND)
    compiled(IMAGES)
    _, align = attached(compiled)
    try:
        ours = one_step(host, align, compiled)
    except RuntimeError as error:
        assert "attach before the first compiled call" in str(error)
        torch._dynamo.reset()
        ours = one_step(host, align, compiled)
    assert_close(ours, gradients_without_compile())


CALLED = pytest.mark.parametrize("called", [False, True], ids=["fresh", "called before"])


def balanced_gradients_without_compile():
    host = Plain()
    _, align = attached(host, balance=0.7)
    return one_step(host, align)


@CALLED
def test_a_balance_on_a_host_compiled_as_a_whole_gives_the_same_gradients_or_raises(called):
    host = Plain()
    compiled = torch.compile(host, backend=BACKEND)
    if called:
        compiled(IMAGES)
    _, again = attached(compiled, balance=0.7)
    refusals = (
        ("torch.compile hides this gradient", "balance=None"),
        ("attach before the first compiled call", "torch._dynamo.reset()"),
    )
    try:
        ours = one_step(host, again, compiled)
    except RuntimeError as error:
        assert any(all(part in str(error) for part in parts) for parts in refusals)
        assert not any(p._backward_hooks for p in host.parameters())
    else:
        assert_close(ours, balanced_gradients_without_compile())


@CALLED
def test_a_balance_with_compiled_parts_gives_the_same_gradients(called):
    found = Plain()
    for part in ("fine", "mid"):
        setattr(found, part, torch.compile(found.get_submodule(part), backend=BACKEND))
    if called:
        found(IMAGES)
    _, again = attached(found, balance=0.7)
    try:
        ours = one_step(found, again)
    except RuntimeError as error:
        assert called and "never fired" in str(error) and "torch._dynamo.reset()" in str(error)
        torch._dynamo.reset()
        ours = one_step(found, again)
    assert_close(ours, balanced_gradients_without_compile())


@pytest.mark.parametrize("tap", ["mid", "mid.0"])
@CALLED
def test_a_compiled_part_keeps_its_paths(tap, called):
    host = Plain()
    host.mid = torch.compile(host.mid, backend=BACKEND)
    if called:
        host(IMAGES)
    optimizer = torch.optim.Adam(host.parameters())
    align = tavq.attach(host, optimizer, text_dim=6, taps=["fine", tap], quantizer="vq", parse=parse)
    try:
        one_step(host, align)
    except RuntimeError as error:
        assert called and "never fired" in str(error) and "torch._dynamo.reset()" in str(error)
        torch._dynamo.reset()
    one_step(host, align)
    assert align.hierarchy.project[1].weight.grad.norm() > 0


@pytest.mark.slow
def test_a_tokenizer_compiles():
    tokenizer = tavq.wrap(Plain(), **DESCRIPTION)
    compiled = torch.compile(tokenizer, backend=BACKEND)
    found = []
    for call in (tokenizer, compiled, compiled):
        tokenizer.zero_grad()
        output, codes = call(IMAGES)
        (own_loss(output) + codes.loss).backward()
        found.append(gradients(tokenizer))
    assert_close(found[1], found[0])
    assert_close(found[2], found[0])


def test_wrapping_a_compiled_host_is_refused():
    with pytest.raises(ValueError, match=r"inside OptimizedModule: wrap the host itself, then put the tokenizer"):
        tavq.wrap(torch.compile(Plain(), backend=BACKEND), **DESCRIPTION)
