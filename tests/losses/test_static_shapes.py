"""A fixed schedule, as on a GPU: few operations, nothing read back, and the result of merging repeated codes."""

from dataclasses import replace

import pytest
import torch
from helpers.generators import draw
from torch.utils._python_dispatch import TorchDispatchMode

import tavq_plugin as tavq
from tavq_plugin.losses import TextAlignment
from tavq_plugin.ot.solve import TransportSettings
from tavq_plugin.types import GRANULARITIES

WIDTH, TEXT, IMAGES = 8, 12, 3
READS = (
    "_local_scalar_dense", "item", "nonzero", "nonzero_static", "masked_select", "equal", "is_nonzero",
    "unique", "unique2", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount",
)  # fmt: skip


class Dispatched(TorchDispatchMode):
    """Operations other than views, and those that make the CPU wait for a device."""

    def __init__(self):
        super().__init__()
        self.count, self.reads = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += not (func.is_view or name in ("_unsafe_view", "promote_types"))
        masked = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masked or name in READS:
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


def made_codes(sides=(8, 4, 2), k=6):
    table, levels = torch.randn(k, WIDTH, generator=draw(0)), []
    for side in sides:
        indices = torch.randint(k, (IMAGES, side, side), generator=draw(side))
        vectors = table[indices].movedim(-1, 1).contiguous().requires_grad_()
        levels.append(tavq.Level(vectors, vectors, indices, torch.zeros(())))
    return tavq.Codes(tuple(levels))


def made_texts():
    mask = torch.arange(6) < torch.tensor([[6], [3], [0]])
    return {n: tavq.Units(torch.randn(IMAGES, 6, TEXT, generator=draw(i)), mask) for i, n in enumerate(GRANULARITIES)}


def alignment(schedule, tolerance=1e-2, **settings):
    torch.manual_seed(0)
    transport = TransportSettings(schedule=schedule, tolerance=tolerance)
    return TextAlignment(WIDTH, TEXT, transport=transport, level_weights=(2.0, 1.0, 0.5), **settings)


def test_a_three_level_call_takes_fewer_than_600_operations():
    align, texts = alignment("fixed", contrast=1.0), made_texts()
    counts = []
    for sides in ((8, 4, 2), (32, 16, 8)):  # the number does not depend on the sizes
        codes = made_codes(sides)
        leaves = [*(level.quantized for level in codes.levels), *align.project.parameters()]
        with Dispatched() as seen:
            torch.autograd.grad(align(codes, texts), leaves)
        counts.append(seen.count)
    assert counts[0] == counts[1] < 600


@pytest.mark.parametrize("distribution", ["all", "gaussian", "subsample"])
@pytest.mark.parametrize("contrast_on", ["pooled", "transport"])
def test_a_fixed_schedule_reads_nothing_back(distribution, contrast_on):
    seen = {}
    for schedule in ("fixed", "adaptive"):
        align = alignment(schedule, contrast=0.1, contrast_on=contrast_on, distribution=distribution, samples=4)
        codes, texts = made_codes(), made_texts()
        with Dispatched() as seen[schedule]:
            align(codes, texts).backward()
    # solve's check of masses reads on a CPU alone, where nothing waits: once per side of each transport
    calls = 1 if contrast_on == "pooled" else 4
    assert seen["fixed"].reads == ["_local_scalar_dense"] * 2 * calls
    assert len(seen["adaptive"].reads) > len(seen["fixed"].reads)


@pytest.mark.parametrize("contrast_on", ["pooled", "transport"])
def test_every_place_as_a_point_gives_what_merged_codes_give(contrast_on):
    found = []
    for schedule in ("fixed", "adaptive"):
        align = alignment(schedule, 1e-6, contrast=0.1, contrast_on=contrast_on)
        codes = made_codes()
        loss = align(codes, made_texts())
        leaves = [*(level.quantized for level in codes.levels), *align.project.parameters()]
        found.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distribution", ["all", "subsample"])
def test_masked_places_and_bad_indices_without_reading_them(distribution):
    codes, texts = made_codes(), made_texts()
    indices = codes.levels[0].indices.clone()
    indices[0, 0, 0] = -2 if distribution == "all" else -1  # with "all", −1 is a place without mass
    bad = tavq.Codes((replace(codes.levels[0], indices=indices), *codes.levels[1:]))
    assert alignment("fixed", distribution=distribution, samples=4)(bad, texts).isnan()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("contrast_on", ["pooled", "transport"])
def test_a_step_on_a_gpu_never_waits_for_it(contrast_on):
    align = alignment(None, contrast=0.1, contrast_on=contrast_on).cuda()
    texts = {name: units.to("cuda") for name, units in made_texts().items()}
    levels = []
    for level in made_codes().levels:
        vectors = level.quantized.detach().cuda().requires_grad_()
        levels.append(tavq.Level(vectors, vectors, level.indices.cuda(), level.loss.cuda()))
    codes = tavq.Codes(tuple(levels))
    align(codes, texts).backward()  # records the graph
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = align(codes, texts)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
