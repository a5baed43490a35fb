"""A head applied once per group of equal rows, against the same head on each row."""

import pytest
import torch
from helpers.generators import draw
from torch import nn

from tavq_plugin.losses.unique_codes import apply_once_per_code


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
