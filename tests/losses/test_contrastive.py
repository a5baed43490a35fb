"""Contrasts over the batch against plain loops over pairs of images and texts."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.generators import draw

from tavq_plugin.losses.contrastive import batch_contrast, transport_contrast
from tavq_plugin.ot import solve
from tavq_plugin.types import Units

OPTIONS = dict(epsilon=0.3, tolerance=1e-9, max_passes=200)
KINDS = {"pooled": batch_contrast, "transport": lambda *args, **kw: transport_contrast(*args, **kw, **OPTIONS)}


def made(b=4, n=5, m=3, d=6, *, weighted=False, without_text=()):
    """Unit points with masses (each image's last is a pad) and units, of which later images have fewer."""
    g = draw(b * n + m)
    points = F.normalize(torch.randn(b, n, d, generator=g, dtype=torch.float64), dim=-1)
    masses = torch.rand(b, n, generator=g, dtype=torch.float64) + 0.1
    masses[:, -1] = 0
    points[:, -1] = 0
    mask = torch.arange(m)[None] < torch.tensor([m - i % m for i in range(b)])[:, None]
    mask[list(without_text)] = False
    weights = torch.rand(b, m, generator=g, dtype=torch.float64) + 0.1 if weighted else None
    return points, masses, Units(torch.randn(b, m, d, generator=g, dtype=torch.float64), mask, weights)


def similarity(kind, points, masses, units, i, j):
    """Similarity of image i and text j: a cosine, or minus half the transport value."""
    x, a = points[i][masses[i] > 0], masses[i][masses[i] > 0]
    y = F.normalize(units.embeddings[j][units.mask[j]], dim=1)
    w = torch.ones(len(y)).double() if units.weights is None else units.weights[j][units.mask[j]]
    if kind == "pooled":
        return F.cosine_similarity((a[:, None] * x).sum(0), (w[:, None] * y).sum(0), dim=0)
    return -solve(x[None], y[None], x_weight=a[None], y_weight=w[None], **OPTIONS).value[0] / 2


def by_loops(kind, points, masses, units, temperature):
    with_text = [i for i in range(len(points)) if units.mask[i].any()]
    logits = {
        (i, j): similarity(kind, points, masses, units, i, j).item() / temperature for i in with_text for j in with_text
    }
    total = 0.0
    for i in with_text:
        total += math.log(sum(math.exp(logits[i, j]) for j in with_text)) - logits[i, i]
        total += math.log(sum(math.exp(logits[j, i]) for j in with_text)) - logits[i, i]
    return total / (2 * len(with_text))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "case", [{}, {"weighted": True}, {"without_text": (1, 3)}], ids=["plain", "weighted", "without_text"]
)
def test_a_contrast_equals_a_plain_loop_over_pairs(kind, case):
    points, masses, units = made(**case)
    value = KINDS[kind](points, masses, units, temperature=0.2)
    assert value.item() == pytest.approx(by_loops(kind, points, masses, units, 0.2), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_both_contrasts(kind):
    points, masses, units = made(b=3, n=4, m=2, d=3, weighted=True)
    options = {} if kind == "pooled" else OPTIONS | {"epsilon": 0.5, "epsilon_mode": "absolute"}
    function = batch_contrast if kind == "pooled" else transport_contrast

    def contrast(x, y):
        return function(x, masses, Units(y, units.mask, units.weights), temperature=0.5, **options)

    torch.autograd.gradcheck(contrast, (points.requires_grad_(), units.embeddings.requires_grad_()), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_pads_of_points_and_units_change_nothing(kind):
    points, masses, units = made()
    wide = Units(F.pad(units.embeddings, (0, 0, 0, 4), value=1e4), F.pad(units.mask, (0, 4)))
    more = KINDS[kind](F.pad(points, (0, 0, 0, 3)), F.pad(masses, (0, 3)), wide)
    torch.testing.assert_close(more, KINDS[kind](points, masses, units), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("without_text", [(0, 1, 2), (0, 1, 2, 3)], ids=["one text", "none"])
def test_fewer_than_two_texts_give_exactly_zero(kind, without_text):
    points, masses, units = made(without_text=without_text)
    value = KINDS[kind](points.requires_grad_(), masses, units)
    value.backward()
    assert value == 0 and (points.grad == 0).all()


@pytest.mark.parametrize("temperature", [1e-5, 1e3])
def test_images_without_text_are_left_out_at_any_temperature(temperature):
    points, masses, units = made(without_text=(1, 3))
    kept = Units(units.embeddings[::2], units.mask[::2])
    value = batch_contrast(points, masses, units, temperature=temperature)
    torch.testing.assert_close(value, batch_contrast(points[::2], masses[::2], kept, temperature=temperature))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_small_only_for_the_images_own_text(kind):
    points = torch.eye(3, dtype=torch.float64)[:, None].repeat(1, 2, 1)
    masses, mask = torch.full((3, 2), 0.5).double(), torch.ones(3, 1, dtype=torch.bool)
    own, other = (KINDS[kind](points, masses, Units(y[:, None], mask)) for y in (points[:, 0], points[:, 0].roll(1, 0)))
    assert own < 1e-3 < 5 < other
