"""What every adapter must pass; a test module names its hosts in a `host` fixture and imports these."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from einops import rearrange
from hosts import first

import tavq_plugin as tavq
from tavq_plugin.contract import GRANULARITIES, Units

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


def grad_modes(host) -> tuple[str, ...]:
    return ("codebook", "both") if hasattr(host, "quantize") and hasattr(host.quantize, "embed") else (
        "encoder", "codebook", "both",
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_reconstruction_is_bit_identical(host, mode):
    getattr(host, mode)()
    torch.manual_seed(1)
    bare = first(host(IMAGES))
    tokenizer = tavq.wrap(host)
    torch.manual_seed(1)
    output, _ = tokenizer(IMAGES)
    assert torch.equal(first(output), bare)


def test_levels_are_fine_to_coarse_and_look_the_codebook_up(host):
    tokenizer = tavq.wrap(host)
    codebook = tokenizer.adapter.codebook()
    torch.manual_seed(1)
    _, codes = tokenizer(IMAGES)
    assert [tuple(level.indices.shape) for level in codes.levels] == [(2, 32, 32), (2, 16, 16), (2, 8, 8)]
    for level in codes.levels:
        assert level.indices.dtype == torch.int64
        assert level.indices.min() >= 0 and level.indices.max() < len(codebook)
        looked_up = rearrange(codebook[level.indices], "b h w c -> b c h w")
        torch.testing.assert_close(level.quantized, looked_up, rtol=0, atol=1e-6)
    assert codes.final.loss == 0 and codes.loss == codes.levels[0].loss + codes.levels[1].loss


def test_encode_and_decode_agree_with_forward(host):
    host.eval()
    tokenizer = tavq.wrap(host)
    torch.manual_seed(1)
    output, codes = tokenizer(IMAGES)
    torch.manual_seed(1)
    encoded = tokenizer.encode(IMAGES)
    for a, b in zip(codes.levels, encoded.levels, strict=True):
        assert torch.equal(a.indices, b.indices)
    torch.testing.assert_close(tokenizer.decode(encoded), first(output), rtol=1e-4, atol=1e-5)


def test_gradient_goes_where_grad_to_says_from_every_level(host):
    stem = next(host.encoder.parameters())
    for mode in grad_modes(host):
        tokenizer = tavq.wrap(host, grad_to=mode)
        codebook = tokenizer.adapter.codebook()
        for index in range(3):
            host.zero_grad()
            _, codes = tokenizer(IMAGES)
            (codes.levels[index].quantized ** 2).sum().backward()
            reached = [p.grad is not None and p.grad.norm() > 0 for p in (stem, codebook)]
            gumbel_final = index == 2 and not tokenizer.adapter.straight_through and mode == "both"
            expected = [True, True] if gumbel_final else [mode != "codebook", mode != "encoder"]
            assert reached == expected, (mode, index)


def test_state_dict_round_trips_strictly(host):
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    tokenizer = tavq.wrap(host)
    tokenizer(IMAGES)
    after = tokenizer.host.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    copy.deepcopy(host).load_state_dict(after, strict=True)


def traces(host) -> tuple:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in host.modules()]
    return (
        hooks,
        [m.training for m in host.modules()],
        [p.requires_grad for p in host.parameters()],
        list(host.state_dict()),
        sorted(vars(host)),
    )


def test_detach_leaves_no_trace(host):
    optimizer = torch.optim.Adam(host.parameters())
    host.encoder.eval()
    before, stream = traces(host), torch.get_rng_state()
    groups = len(optimizer.param_groups)
    align = tavq.attach(host, optimizer, text_dim=6)
    assert torch.equal(stream, torch.get_rng_state())
    assert len(optimizer.param_groups) == groups + 1
    host(IMAGES)
    align(texts()).backward()
    optimizer.step()
    tavq.detach(host)
    assert traces(host) == before
    assert len(optimizer.param_groups) == groups
    assert not {id(p) for p in align.parameters()} & {id(p) for p in optimizer.state}


def test_weight_zero_trains_bit_identically(host):
    def train(model, align) -> list:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        handle = tavq.attach(model, optimizer, weight=0, text_dim=6) if align else None
        torch.manual_seed(2)
        for _ in range(5):
            optimizer.zero_grad()
            output = model(IMAGES)
            loss = (first(output) - IMAGES).abs().mean() + (output[1].mean() if isinstance(output, tuple) else 0)
            if handle is not None:
                extra = handle(texts())
                assert extra == 0 and not extra.requires_grad
                loss = loss + extra
            loss.backward()
            optimizer.step()
        return list(model.state_dict().values())

    twin = copy.deepcopy(host)
    for a, b in zip(train(host, False), train(twin, True), strict=True):
        assert torch.equal(a, b)


def test_a_copy_of_an_attached_host_is_inert(host):
    optimizer = torch.optim.Adam(host.parameters())
    align = tavq.attach(host, optimizer, text_dim=6)
    for twin in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        twin(IMAGES)
        with pytest.raises(RuntimeError, match="no forward of the host was recorded"):
            align(texts())
    tavq.detach(host)
