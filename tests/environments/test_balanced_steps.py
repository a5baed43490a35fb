"""Balanced gradients in one process: other passes, errors, scalers, copies, and what is left behind."""

import copy
import gc
import weakref
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import torch
from helpers.conformance import texts
from helpers.plain_training import DESCRIPTION, IMAGES, Plain, attached, gradients, one_step, own_loss
from torch.optim.swa_utils import AveragedModel

import tavq_plugin as tavq
from tavq_plugin.losses.gradient_balance import balance_gradient
from tavq_plugin.losses.gradient_injection import GradientFigures, align_on_copies

BALANCED = {"balance": 0.7}


@pytest.fixture
def host():
    return Plain()


@contextmanager
def without_collector():
    """Only references keep objects alive, as in a training loop between two runs of the collector."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def assert_equal(ours, expected):
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def assert_untouched(host):
    """No tensor hook is on a parameter, and the host's own loss gives the gradients of a host without a plug-in."""
    assert not any(p._backward_hooks for p in host.parameters())
    host.zero_grad()
    own_loss(host(IMAGES)).backward()
    assert_equal(gradients(host), alone())


def alone():
    host = Plain()
    own_loss(host(IMAGES)).backward()
    return gradients(host)


def balanced():
    host = Plain()
    _, align = attached(host, **BALANCED)
    return one_step(host, align)


@pytest.mark.parametrize("settings", [{"weight": 0.0}, {"balance": 0.0}], ids=lambda s: next(iter(s)))
def test_weight_or_balance_zero_trains_the_host_bit_identically(settings):
    trained = []
    for added in (False, True):
        host = Plain()
        optimizer, align = attached(host, **settings) if added else (torch.optim.Adam(host.parameters(), lr=1e-2), None)
        for _ in range(4):
            optimizer.zero_grad()
            loss = own_loss(host(IMAGES))
            (loss + align(texts()) if added else loss).backward()
            optimizer.step()
        trained.append(list(host.parameters()))
    assert_equal(*trained)


def test_a_part_of_the_hosts_loss_may_be_computed_after_align():
    """The engine then reaches the codebook, which has no other part in it, before it reaches align."""
    found = []
    for early in (True, False):
        host = Plain()
        _, align = attached(host, **BALANCED)
        output, _ = host(IMAGES)
        spread = host.vq.embedding.weight.square().mean() if early else None
        added = align(texts())
        spread = host.vq.embedding.weight.square().mean() if spread is None else spread
        ((output - IMAGES).abs().mean() + spread + added).backward()
        assert align.last["gradient_skipped"].sum() == 0
        found.append(gradients(host, align))
    assert_equal(*found)


def test_gradients_of_the_host_alone_are_the_same(host):
    """`autograd.grad` and `backward(inputs=...)` that leave the heads out."""
    expected, known = balanced(), list(host.parameters())
    _, align = attached(host, **BALANCED)
    assert_equal(torch.autograd.grad(own_loss(host(IMAGES)) + align(texts()), known), expected[: len(known)])
    (own_loss(host(IMAGES)) + align(texts())).backward(inputs=known)
    assert_equal([p.grad for p in known], expected[: len(known)])


def test_frozen_heads_still_align_the_host(host):
    _, align = attached(host, **BALANCED)
    align.requires_grad_(False)
    assert_equal(one_step(host, align), balanced()[: len(list(host.parameters()))])


def trained_by_gan(passes, critic_to_host):
    """The host after generator passes, with discriminator passes between; each runs the host's forward."""
    host = Plain()
    optimizer, align = attached(host, **BALANCED)
    critic = torch.nn.Conv2d(3, 1, 3)
    for kind in passes:
        if kind == "generator":
            optimizer.zero_grad()
            one_step(host, align)
            optimizer.step()
        else:
            output, _ = host(IMAGES)
            critic(output if critic_to_host else output.detach()).mean().backward()
        assert not any(p._backward_hooks for p in host.parameters())
    return [*host.parameters(), *align.parameters()], align.last["gradient_skipped"]


@pytest.mark.parametrize("critic_to_host", [False, True])
@pytest.mark.parametrize("passes", ["gdgdgd", "dgdgdg", "gddgg"])
def test_a_discriminator_pass_receives_nothing_and_changes_nothing(passes, critic_to_host):
    names = {"g": "generator", "d": "discriminator"}
    expected, _ = trained_by_gan(["generator"] * 3, critic_to_host)
    found, skipped = trained_by_gan([names[p] for p in passes], critic_to_host)
    assert_equal(found, expected)
    assert skipped.sum() == 0


def test_an_adaptive_weight_between_align_and_backward_receives_nothing(host):
    """VQGAN's weight of the adversarial loss needs gradients of its own, over a graph that is kept."""
    _, align = attached(host, **BALANCED)
    output = host(IMAGES)
    loss = own_loss(output) + align(texts())
    table = torch.autograd.grad(own_loss(output), host.vq.embedding.weight, retain_graph=True)
    assert_equal(table, codebook_gradient())
    loss.backward()
    assert_equal(gradients(host, align), balanced())


def codebook_gradient():
    host = Plain()
    return torch.autograd.grad(own_loss(host(IMAGES)), host.vq.embedding.weight)


def test_a_pass_without_align_receives_nothing(host):
    _, align = attached(host, **BALANCED)
    own_loss(host(1 - IMAGES)).backward()
    host.zero_grad()
    assert_equal(one_step(host, align), balanced())
    assert_untouched(host)


def test_an_error_before_the_backward_leaves_no_hook(host):
    _, align = attached(host, **BALANCED)

    def step():
        loss = own_loss(host(IMAGES)) + align(texts())
        raise MemoryError(f"out of memory at {loss.shape}")

    with without_collector():
        with suppress(MemoryError):
            step()
        assert_untouched(host)
    host.zero_grad()
    assert_equal(one_step(host, align), balanced())


def test_an_error_in_the_backward_leaves_no_hook_that_acts(host):
    _, align = attached(host, **BALANCED)

    def fail(grad):
        raise MemoryError("out of memory")

    handle = host.stem.weight.register_hook(fail)
    loss = own_loss(host(IMAGES)) + align(texts())
    with pytest.raises(MemoryError):
        loss.backward()
    handle.remove()
    host.zero_grad()
    own_loss(host(IMAGES)).backward()  # `loss` still lives
    assert_equal(gradients(host), alone())
    del loss
    assert_untouched(host)


@pytest.mark.parametrize("then", ["backward", "dropped"])
def test_detaching_between_align_and_backward_leaves_no_trace(host, then):
    _, align = attached(host, **BALANCED)
    loss = own_loss(host(IMAGES)) + align(texts())
    tavq.detach(host)
    assert not any(module._forward_hooks for module in host.modules())
    if then == "backward":
        loss.backward()
        assert_equal(gradients(host, align), balanced())
    del loss
    assert_untouched(host)


def test_the_hosts_graph_is_freed_by_the_backward(host):
    _, align = attached(host, **BALANCED)
    features = []
    for module in (host.fine, host.mid):
        module.register_forward_hook(lambda module, args, output: features.append(weakref.ref(output)))
    with without_collector():
        loss = own_loss(host(IMAGES)) + align(texts())
        assert len(features) == 2 and all(feature() is not None for feature in features)
        loss.backward()
        assert [feature() for feature in features] == [None] * 2  # though the loss still lives
        loss = own_loss(host(IMAGES)) + align(texts())
        del loss  # a step that is left out, in which only the latest codes hold the graph
        align.codes = None
        assert [feature() for feature in features] == [None] * 4


def test_the_copies_are_freed_by_the_backward():
    tokenizer = tavq.wrap(Plain(), **DESCRIPTION)
    align, tokenizer.on_copies = tavq.TextAlignment(tokenizer, 6), True
    own = [*align.parameters(), *tokenizer.hierarchy.parameters()]
    with without_collector():
        output, codes = tokenizer(IMAGES)
        copies = [weakref.ref(each.copy) for each in codes.copies if each.copy is not each.original]
        added = align_on_copies(lambda codes: align(codes, texts()), codes, own, rule=half, figures=GradientFigures())
        loss, kept = own_loss(output) + codes.loss + added, replace(codes, copies=())
        del codes
        assert len(copies) == 5 and copies[0]() is not None and copies[1]() is not None  # those of the taps
        loss.backward()
        assert [copy() is kept.final.latent for copy in copies] == [False, False, True, False, False]


def half(alignment, gradient, images, level):
    return balance_gradient(alignment, gradient, 0.5, images=images)


def test_a_loss_scaler_that_overflows_skips_the_step(host):
    optimizer, align = attached(host, **BALANCED)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-100)
    start = [p.detach().clone() for p in host.parameters()]
    for step in range(2):
        optimizer.zero_grad()
        scaler.scale(1e3 * own_loss(host(IMAGES)) + align(texts())).backward()
        scaler.step(optimizer)
        scaler.update()
        if step == 0:
            assert_equal(list(host.parameters()), start)
            assert align.last["gradient_skipped"].sum() > 0
    assert scaler.get_scale() == 2.0**27
    assert all(p.isfinite().all() for p in (*host.parameters(), *align.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(start, host.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_no_small_gradient_to_zero(dtype):
    """In a large batch the alignment's gradient at a place is far below what float16 can hold."""
    found = []
    for share in (1.0, 1e-7):
        host = Plain()
        _, align = attached(host, **BALANCED, alignment={"contrast": 0.0, "level_weights": (share,) * 3})
        with torch.autocast("cpu", dtype=dtype):
            output, quantizer_loss = host(IMAGES)
            added = align(texts())
        (2.0**10 * own_loss((output.float(), quantizer_loss.float())) + added).backward()
        assert (align.last["gradient_ratio"] > 0).all()
        found.append(gradients(host))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-2 * b.abs().max().item())


def test_reentrant_checkpointing_is_refused_with_the_fix():
    host = Plain(checkpointed=True)
    _, align = attached(host, **BALANCED)
    host(IMAGES)
    with pytest.raises(RuntimeError, match=r"fine, mid ran under no_grad .*use_reentrant=False"):
        align(texts())
    tavq.detach(host)
    assert not any(module._forward_hooks for module in host.modules())


def test_an_averaged_copy_and_a_copied_attachment_are_inert(host):
    optimizer, align = attached(host, **BALANCED)
    twin = copy.deepcopy(align)
    average = AveragedModel(host, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for _ in range(2):
        optimizer.zero_grad()
        loss = own_loss(host(IMAGES)) + align(texts())
        average.zero_grad()
        own_loss(average(IMAGES)).backward()
        expected = [p.grad.clone() for p in average.parameters()]
        loss.backward()
        assert_equal([p.grad for p in average.parameters()], expected)
        optimizer.step()
        average.update_parameters(host)
    twin.adapter.model(IMAGES)
    with pytest.raises(RuntimeError, match="no forward of the host was recorded"):
        twin(texts())
    host.zero_grad()
    one_step(host, align)
    assert align.last["gradient_skipped"].sum() == 0
