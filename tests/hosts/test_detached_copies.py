"""Detached copies of recorded calls: which tensors are copied, in which type, and along which axis images lie."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tavq_plugin.hosts.detached_copies import detached_copies
from tavq_plugin.hosts.hooks import Capture


def copies_of(tap, z_in, output, layout="b c h w"):
    """Copies of one tap and a quantizer's call, without those of parameters."""
    adapter = SimpleNamespace(
        taps=("tap",), quantizer="vq", layout=layout, model=nn.Module(), tokens=lambda feature, level: tap
    )
    seen = {"tap": Capture(None, tap, None, True), "vq": Capture(z_in, output, None, True)}
    return detached_copies(adapter, seen)


def drawn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()


def test_a_tensor_that_is_recorded_twice_has_one_copy():
    """Else what is injected for one copy would be taken for the host's own at the other."""
    feature = drawn(2, 4, 3, 3)
    apart, copies = copies_of(feature, feature, (drawn(2, 4, 3, 3), feature))
    assert [copy.name for copy in copies] == ["tap", "vq (output)"]
    assert apart["tap"].output is apart["vq"].z_in is apart["vq"].output[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_copies_have_the_same_values_in_at_least_float32(dtype):
    _, copies = copies_of(*(drawn(2, 4, 3, 3, dtype=dtype) for _ in range(3)))
    for copy in copies:
        assert copy.copy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(copy.copy, copy.original.to(copy.copy.dtype)) and copy.copy.is_leaf


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 4, 3, 3), 0), ((9, 2, 4), 1), ((2, 36), 0), ((18, 2), None), ((18, 4), None), ((), None)],
    ids=["maps", "sequence first", "one row per image", "as many columns as images", "flattened", "scalar"],
)
def test_the_axis_of_the_images(shape, axis):
    _, copies = copies_of(drawn(2, 4, 3, 3), drawn(*shape), (drawn(2, 4, 3, 3),))
    assert copies[1].images == axis
