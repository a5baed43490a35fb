"""Bits per code: known values, and a pattern that a causal model learns."""

import math

import pytest
import torch

from tavq_plugin.tasks.bits_per_code import CodeModel, bits_by_frequency, bits_per_code
from tavq_plugin.tasks.fit_model import FitSettings
from tavq_plugin.tasks.task import ModelSettings
from tavq_plugin.tasks.tokens import CodeSequences, LevelGrid, TokenLayout

LAYOUT = TokenLayout((LevelGrid(2, 2, 4),))


def sequences(tokens):
    return CodeSequences(tokens, LAYOUT, torch.eye(4), "made")


def test_frequencies_give_the_entropy_that_they_have():
    train = sequences(torch.tensor([[0, 0, 0, 1]]))  # counts 3, 1, 0, 0, and one more each, of 8
    bits = bits_by_frequency(train, sequences(torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]])))
    assert bits.tolist() == pytest.approx([(1 + 2 + 3 + 3) / 4, 1.0])


def test_a_place_shares_its_probability_between_the_codes_of_its_level():
    layout = TokenLayout((LevelGrid(1, 1, 4), LevelGrid(1, 1, 2)))
    torch.manual_seed(0)
    model = CodeModel(layout, ModelSettings(16, 1, 2)).eval()
    with torch.no_grad():
        first = model(torch.tensor([[code, 4] for code in range(4)]))[:, 0]
        second = model(torch.tensor([[0, 4], [0, 5]]))[:, 1]
    assert first.neg().exp2().sum() == pytest.approx(1, abs=1e-5)
    assert second.neg().exp2().sum() == pytest.approx(1, abs=1e-5)


def test_codes_that_follow_from_the_first_cost_only_the_first(tmp_path):
    tokens = torch.arange(4).repeat(16)[:, None].expand(-1, 4)  # all codes of an image are the same one
    bits = bits_per_code(
        sequences(tokens), sequences(tokens[:8]), model=ModelSettings(32, 1, 2),
        fit=FitSettings(steps=80, batch_size=16, learning_rate=1e-2, warmup=5), folder=tmp_path, made_from={},
    )  # fmt: skip
    assert math.log2(4) / 4 - 0.05 < bits.model.mean() < math.log2(4) / 4 + 0.2
    assert bits.frequencies.mean() == pytest.approx(2, abs=1e-6)
