"""A head applied once per group of equal rows, against the same head on each row."""

import pytest
import torch
from helpers.generators import draw
from torch import nn

from tavq_plugin.losses.unique_codes import apply_once_per_code, merge_repeated_codes


@pytest.mark.parametrize("head", [[nn.Linear(3, 4)], [nn.Linear(3, 5, bias=False), nn.GELU(), nn.Linear(5, 4)]])
@pytest.mark.parametrize("group", [[1, 0, 1, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5, 6], [0]], ids=["shared", "own", "one"])
def test_value_and_gradients_equal_the_head_on_every_row(head, group):
    head, group = nn.Sequential(*head).double(), torch.tensor(group)
    table = torch.randn(7, 3, generator=draw(0), dtype=torch.float64)
    grad = torch.randn(len(group), 4, generator=draw(1), dtype=torch.float64)
    given = []
    for function in (lambda x: head(x), lambda x: apply_once_per_code(head, x, group)):
        x = table[group].requires_grad_()
        value = function(x)
        given.append([value, *torch.autograd.grad(value, [x, *head.parameters()], grad)])
    for plain, shared in zip(*given, strict=True):
        torch.testing.assert_close(shared, plain)


def test_each_of_the_equal_rows_gets_its_own_gradient():
    head, x = nn.Sequential(nn.Linear(2, 1)), torch.ones(4, 2, requires_grad=True)
    value = apply_once_per_code(head, x, torch.zeros(4, dtype=torch.long))
    (value * torch.tensor([[1.0], [2.0], [0.0], [0.0]])).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[1.0], [2.0], [0.0], [0.0]]) * head[0].weight)


def codes_off_by(off):
    """Two images of 2 × 2 places with the indices [0, 0, 1, 1]; one place of the second image is off by `off`."""
    table = torch.randn(2, 8, generator=draw(0))
    codes = table[torch.tensor([0, 0, 1, 1])].T.reshape(8, 2, 2).repeat(2, 1, 1, 1)
    codes[1, :, 1, 1] += off
    return codes, torch.tensor([[[0, 0], [1, 1]]] * 2)


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4])
def test_codes_that_agree_in_some_projections_alone_are_not_merged(size):
    for seed in range(4):
        off = torch.zeros(8)
        pair = torch.randperm(8, generator=draw(seed))[:2]
        fixed = (torch.arange(1, 9) * 0.7548776662).frac() - 0.5  # a projection that does not see this difference
        off[pair] = size * torch.tensor([1.0, -1.0]) * fixed[pair.flip(0)] / fixed[pair].abs().max()
        assert off @ fixed == pytest.approx(0, abs=1e-7)
        assert len(merge_repeated_codes(*codes_off_by(off)).distinct) == 8


def test_codes_of_one_channel_that_differ_are_not_merged():
    for channel in range(8):
        off = torch.zeros(8)
        off[channel] = 1e-4
        assert len(merge_repeated_codes(*codes_off_by(off)).distinct) == 8
    assert len(merge_repeated_codes(*codes_off_by(0.0)).distinct) == 4


def test_a_huge_code_does_not_hide_that_others_of_its_image_are_unequal():
    codes, indices = codes_off_by(0.5)
    codes[1, :, 0, :] = 1e7
    assert len(merge_repeated_codes(codes, indices).distinct) == 8


def test_one_number_is_not_given_to_unequal_codes_of_two_images():
    codes, indices = codes_off_by(0.0)
    codes[1, :, 1] += 0.5  # both places, so that each image's own codes are equal
    codes[1, :, 0] *= 1e6
    merged = merge_repeated_codes(codes, indices)
    assert len(merged.distinct) == 4 and merged.group.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("latents", [1.0, 1e3])
def test_a_straight_through_sum_is_merged_in_spite_of_its_rounding(latents):
    codes, indices = codes_off_by(0.0)
    latent = latents * torch.randn(codes.shape, generator=draw(1))
    summed = latent + (codes - latent)
    assert not torch.equal(summed[0, :, 0, 0], summed[0, :, 0, 1])
    assert len(merge_repeated_codes(summed, indices, latent).distinct) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_merged_in_float32(dtype):
    codes, indices = codes_off_by(0.0)
    merged = merge_repeated_codes(codes.to(dtype), indices)
    assert len(merged.distinct) == 4 and merged.distinct.dtype == merged.masses.dtype == torch.float32
