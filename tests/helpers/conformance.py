"""Tests that every adapter must pass; a test module gives its hosts in a `case` fixture and imports these."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping

import pytest
import torch
from einops import rearrange
from torch import nn
from torch.utils._pytree import tree_leaves

import tavq_plugin as tavq
from tavq_plugin.types import GRANULARITIES, Units

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1


def texts(width: int = 6, *, empty: int | None = None) -> dict[str, Units]:
    """Random units for the two images."""
    draw = torch.Generator().manual_seed(6)
    batch = {}
    for m, name in zip((5, 4, 2), GRANULARITIES, strict=True):
        mask = torch.ones(2, m, dtype=torch.bool)
        if empty is not None:
            mask[empty] = False
        batch[name] = Units(torch.randn(2, m, width, generator=draw), mask)
    return batch


def attached(case, model, **settings):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return optimizer, tavq.attach(model, optimizer, text_dim=6, **case.settings, **settings)


def equal(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def everything(model: nn.Module) -> dict:
    """Parameters and buffers, those that no state dict holds included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_host_gives_and_becomes_exactly_what_it_would_alone(case, mode):
    """Output, own loss, codebooks (EMA moves once per step) and random stream equal an untouched twin's exactly."""
    model = getattr(case.model, mode)()
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    expected = case.run(twin, case.images)
    stream = torch.get_rng_state()
    flags = [module.training for module in model.modules()]
    _, align = attached(case, model)
    assert [module.training for module in model.modules()] == flags
    torch.manual_seed(1)
    output = case.run(model, case.images)
    assert torch.equal(stream, torch.get_rng_state())
    assert torch.equal(output[0], expected[0]) and torch.equal(output[1], expected[1])
    align(texts())
    assert equal(everything(model), everything(twin))
    tavq.detach(model)


def test_the_wrapped_forward_returns_the_hosts_output_and_the_codes(case):
    tokenizer = tavq.wrap(case.model, **case.settings)
    if not case.forwards:
        with pytest.raises((NotImplementedError, ValueError, RuntimeError)):
            tokenizer(case.takes(case.images))
        return
    twin = copy.deepcopy(case.model)
    torch.manual_seed(1)
    expected = case.run(twin, case.images)
    torch.manual_seed(1)
    output, codes = tokenizer(case.takes(case.images))
    parts = output.values() if isinstance(output, Mapping) else [output]
    assert any(torch.equal(part, expected[0]) for part in tree_leaves(list(parts)) if isinstance(part, torch.Tensor))
    assert len(codes.levels) == 3


def test_levels_are_fine_to_coarse_and_look_the_codebook_up(case):
    case.model.eval()
    tokenizer = tavq.wrap(case.model, **case.settings)
    codebook = tokenizer.adapter.codebook()
    torch.manual_seed(1)
    codes = tokenizer.encode(case.images)
    assert [tuple(level.indices.shape) for level in codes.levels] == [
        (2, *grid) if isinstance(grid, tuple) else (2, grid, grid) for grid in case.grids
    ]
    for level in codes.levels:
        assert level.indices.dtype == torch.int64
        assert level.indices.min() >= 0 and level.indices.max() < len(codebook)
        assert level.quantized.shape == (2, codebook.shape[1], *level.indices.shape[1:])
    for level in codes.levels if case.one_table else codes.levels[:-1]:
        looked_up = rearrange(codebook[level.indices], "b h w c -> b c h w")
        torch.testing.assert_close(level.quantized, looked_up, rtol=0, atol=2e-6)
    assert codes.final.loss == 0 and codes.loss == codes.levels[0].loss + codes.levels[1].loss


def test_encode_and_decode_agree_with_forward(case):
    case.model.eval()
    tokenizer = tavq.wrap(case.model, **case.settings)
    torch.manual_seed(1)
    reconstruction, _ = case.run(case.model, case.images)
    torch.manual_seed(1)
    codes = tokenizer.encode(case.images)
    if not case.decodes:
        with pytest.raises(NotImplementedError):
            tokenizer.decode(codes)
        return
    torch.testing.assert_close(tokenizer.decode(codes), reconstruction, rtol=1e-4, atol=case.atol)


def test_tokens_both_ways_take_the_hosts_own_path(case):
    case.model.eval()
    tokenizer = tavq.wrap(case.model, **case.settings)
    torch.manual_seed(1)
    reconstruction, _ = case.run(case.model, case.images)
    torch.manual_seed(1)
    tokens = tokenizer.tokens(case.images)
    assert tokens.dtype == torch.int64 and len(tokens) == 2 and tokens.min() >= 0
    if case.own_tokens is not None:
        assert torch.equal(tokens, case.own_tokens(case.model, case.images))
    if not case.decodes_tokens:
        with pytest.raises(NotImplementedError):
            tokenizer.decode_tokens(tokens)
        return
    torch.testing.assert_close(tokenizer.decode_tokens(tokens), reconstruction.detach(), rtol=1e-4, atol=case.atol)
    for wrong in (tokens + 10**6, tokens.flatten(), tokens.float()):
        with pytest.raises(ValueError, match=r"the tokens (run from|are)"):
            tokenizer.decode_tokens(wrong)


def test_gradient_goes_where_grad_to_says_from_every_level(case):
    modules = [module for name, module in case.model.named_modules() if not name.startswith("decoder")]
    stem = next(module for module in modules if isinstance(module, nn.Conv2d | nn.Linear)).weight
    for mode in ("encoder", "codebook", "both"):
        if mode not in case.modes:
            with pytest.raises(ValueError, match=f'grad_to="{mode}" is impossible'):
                tavq.wrap(case.model, grad_to=mode, **case.settings)
            continue
        tokenizer = tavq.wrap(case.model, grad_to=mode, **case.settings)
        tables = codebook_parameters(tokenizer.adapter.codebook(), case.model)
        assert bool(tables) == (case.modes != ("encoder",))
        for index in range(3):
            case.model.zero_grad()
            codes = tokenizer.encode(case.images)
            (codes.levels[index].quantized ** 2).sum().backward()
            reached = [any(p.grad is not None and p.grad.norm() > 0 for p in group) for group in ([stem], tables)]
            assert reached == [mode != "codebook", mode != "encoder"], (mode, index)


def codebook_parameters(table: torch.Tensor, model: nn.Module) -> list[nn.Parameter]:
    """The parameters from which a codebook is computed."""
    if not table.requires_grad:
        return []
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad((table * torch.randn_like(table)).sum(), parameters, allow_unused=True)
    return [p for p, gradient in zip(parameters, found, strict=True) if gradient is not None]


def test_the_default_grad_to_is_the_widest_possible(case):
    expected = "both" if "both" in case.modes else "encoder"
    assert tavq.wrap(case.model, **case.settings).hierarchy.grad_to == expected


def test_state_dict_round_trips_strictly(case):
    """It is that of a twin after its own forward, which may count codes in eval mode too."""
    twin = copy.deepcopy(case.model).eval()
    torch.manual_seed(1)
    case.run(twin, case.images)
    tokenizer = tavq.wrap(case.model.eval(), **case.settings)
    torch.manual_seed(1)
    tokenizer.encode(case.images)
    after = tokenizer.host.state_dict()
    assert equal(after, twin.state_dict())
    twin.load_state_dict(after, strict=True)


def traces(model, *, replaces_buffers=False) -> tuple:
    tensors = dict(model.named_parameters()) if replaces_buffers else everything(model)
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    return (
        hooks,
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        list(model.state_dict()),
        sorted(vars(model)),
        [id(tensor) for tensor in tensors.values()],
    )


def test_detach_leaves_no_trace(case):
    model = case.model
    optimizer = torch.optim.Adam(model.parameters())
    next(model.children()).eval()
    before, stream = traces(case.model, replaces_buffers=case.replaces_buffers), torch.get_rng_state()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    groups = len(optimizer.param_groups)
    balance = {} if case.passes_gradient else {"balance": None}
    align = tavq.attach(model, optimizer, text_dim=6, **case.settings, **balance)
    assert torch.equal(stream, torch.get_rng_state())
    assert equal(dict(model.named_buffers()), buffers)
    assert len(optimizer.param_groups) == groups + 2  # the added levels, and the heads
    output, own = case.run(model, case.images)
    (output.square().mean() + own + align(texts())).backward()
    optimizer.step()
    tavq.detach(model)
    assert traces(case.model, replaces_buffers=case.replaces_buffers) == before
    assert len(optimizer.param_groups) == groups
    assert not {id(p) for p in align.parameters()} & {id(p) for p in optimizer.state}


def test_weight_zero_trains_bit_identically(case):
    def train(model, align) -> dict:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        handle = tavq.attach(model, optimizer, weight=0, text_dim=6, **case.settings) if align else None
        torch.manual_seed(2)
        for _ in range(5):
            optimizer.zero_grad()
            output, own = case.run(model, case.images)
            loss = (output**2).mean() + own.mean()
            if handle is not None:
                extra = handle(texts())
                assert extra == 0 and not extra.requires_grad
                loss = loss + extra
            loss.backward()
            optimizer.step()
        return everything(model)

    twin = copy.deepcopy(case.model)
    assert equal(train(case.model, False), train(twin, True))
    tavq.detach(twin)


def test_a_copy_of_an_attached_host_is_inert(case):
    _, align = attached(case, case.model)
    twins = [copy.deepcopy(case.model)]
    if case.pickles:
        twins.append(pickle.loads(pickle.dumps(case.model)))
    for twin in twins:
        case.run(twin, case.images)
        with pytest.raises(RuntimeError, match="no forward of the host was recorded"):
            align(texts())
    tavq.detach(case.model)
