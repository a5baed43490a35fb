"""How many places are filled, what top-k and top-p leave, guidance, and draws against their probabilities."""

import math

import pytest
import torch

from tavq_plugin.tasks.sampling import SamplingSettings, draw_tokens, filled_after, guided, narrowed

LOGITS = torch.randn(40, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(2).float()


@pytest.mark.parametrize("steps", [1, 2, 7, 12, 40])
def test_the_schedule_fills_every_place_exactly_and_follows_the_cosine(steps):
    holes = torch.tensor([256, 64, 33, 12, 3, 1, 0])
    filled = filled_after(holes, steps)
    assert filled.shape == (steps, 7) and torch.equal(filled[-1], holes)
    per_step = filled.diff(dim=0, prepend=torch.zeros(1, 7, dtype=torch.long))
    assert (per_step >= 0).all() and torch.equal(per_step.sum(0), holes)
    assert (per_step[:, holes >= steps] >= 1).all()
    for step in range(1, steps + 1):
        exact = 256 * (1 - math.cos(math.pi / 2 * step / steps))
        assert abs(int(filled[step - 1, 0]) - max(exact, step)) <= 0.5


def by_loop(row: list[float], k: int, p: float) -> set[int]:
    """The tokens that top-k, then top-p leave: the likeliest until their probabilities reach p."""
    likeliest = sorted(range(len(row)), key=lambda token: -row[token])[: k or None]
    total, left, reached = sum(math.exp(row[token]) for token in likeliest), set(), 0.0
    for token in likeliest:
        if reached >= p:
            break
        left.add(token)
        reached += math.exp(row[token]) / total
    return left


@pytest.mark.parametrize(("k", "p"), [(0, 0.5), (0, 0.9), (3, 1.0), (5, 0.7), (1, 1.0), (0, 0.01)])
def test_top_k_and_top_p_leave_what_a_loop_leaves(k, p):
    left = narrowed(LOGITS, SamplingSettings(temperature=0.7, top_k=k, top_p=p))
    for row, kept in zip((LOGITS / 0.7).tolist(), left.isfinite(), strict=True):
        assert set(kept.nonzero()[:, 0].tolist()) == by_loop(row, k, p)
    torch.testing.assert_close(left[left.isfinite()], (LOGITS / 0.7)[left.isfinite()])


def test_draws_have_the_probabilities_of_the_logits():
    logits = torch.tensor([[0.0, 1.0, 2.0, -math.inf]])
    drawn = draw_tokens(logits.expand(20000, -1), SamplingSettings(temperature=2.0), torch.Generator().manual_seed(1))
    shares = torch.bincount(drawn, minlength=4) / 20000
    torch.testing.assert_close(shares, (logits[0] / 2).softmax(0), atol=0.015, rtol=0)
    assert shares[3] == 0


def test_temperature_0_takes_the_likeliest():
    drawn = draw_tokens(LOGITS, SamplingSettings(temperature=0.0), torch.Generator().manual_seed(1))
    assert torch.equal(drawn, LOGITS.argmax(1))


def test_guidance_is_linear_in_the_logits():
    with_prompt, without = LOGITS.double(), LOGITS.flip(0).double()
    torch.testing.assert_close(guided(with_prompt, without, 1.0), with_prompt)
    torch.testing.assert_close(guided(with_prompt, without, 0.0), without)
    torch.testing.assert_close(guided(with_prompt, without, 3.0), 3 * with_prompt - 2 * without)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"order": "raster"}, "halton"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"guidance": math.inf}, "guidance"),
        ({"order_noise": -0.5}, "order_noise"),
    ],
)
def test_settings_out_of_range_are_refused(setting, named):
    with pytest.raises(ValueError, match=named):
        SamplingSettings(**setting)
