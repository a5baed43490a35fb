"""own_minus_other against exact transport in a plain loop, effective_rank against an SVD, and how they are read."""

import gc
from weakref import ref

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from helpers.generators import draw

import tavq_plugin as tavq
from tavq_plugin.losses import TextAlignment
from tavq_plugin.losses.effective_rank import effective_rank
from tavq_plugin.losses.own_minus_other import own_minus_other
from tavq_plugin.losses.point_clouds import PointClouds
from tavq_plugin.methods.tavq_uniform_plan import UniformPlan
from tavq_plugin.ot.solve import TransportSettings
from tavq_plugin.types import GRANULARITIES

EXACT = TransportSettings(solver="emd")


def clouds(sizes, d=6, seed=0):
    """Point clouds of some sizes, l × b, in float64, with masses that are not uniform."""
    n = max(map(max, sizes))
    points = F.normalize(
        torch.randn(len(sizes), len(sizes[0]), n, d, generator=draw(seed), dtype=torch.float64), dim=-1
    )
    masses = torch.rand(points.shape[:3], generator=draw(seed + 1), dtype=torch.float64) + 0.1
    masses = masses * (torch.arange(n) < torch.tensor(sizes)[..., None])
    return PointClouds(points, masses / masses.sum(2, keepdim=True).clamp(min=1e-9))


def exact_cost(codes, text, level, i, j, cost):
    """POT's cost of image i's codes onto image j's text."""
    a, b = codes.masses[level, i].numpy(), text.masses[level, j].numpy()
    x, y = codes.points[level, i].numpy()[a > 0], text.points[level, j].numpy()[b > 0]
    costs = -x @ y.T if cost == "dot" else ((x[:, None] - y) ** 2).sum(2)
    return ot.emd2(a[a > 0], b[b > 0], costs)


@pytest.mark.parametrize("cost", ["sqeuclidean", "dot"])
def test_it_equals_a_plain_loop_of_exact_transports(cost):
    codes = clouds([[7, 4, 7, 6, 5], [3, 4, 2, 4, 4]])
    text = clouds([[3, 0, 5, 1, 4], [0, 2, 0, 3, 0]], seed=5)
    expected = []
    for level, with_text in enumerate(([0, 2, 3, 4], [1, 3])):
        others = [*with_text[1:], with_text[0]]
        expected.append(
            np.mean(
                [
                    exact_cost(codes, text, level, i, i, cost) - exact_cost(codes, text, level, i, j, cost)
                    for i, j in zip(with_text, others, strict=True)
                ]
            )
        )
    found = own_minus_other(codes, text, TransportSettings(solver="emd", cost=cost))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-9)
    for mode, epsilon in (("relative", 5e-3), ("absolute", 2e-3)):
        sharp = TransportSettings(cost=cost, tolerance=1e-8, max_passes=500, epsilon=epsilon, epsilon_mode=mode)
        torch.testing.assert_close(own_minus_other(codes, text, sharp), found, rtol=0, atol=2e-3)


def test_it_turns_its_sign_if_two_images_exchange_their_texts():
    codes, text = clouds([[5, 6]]), clouds([[3, 4]], seed=5)
    exchanged = PointClouds(*(part.flip(1) for part in text))
    found = own_minus_other(codes, text, EXACT)
    assert found.abs() > 1e-3
    torch.testing.assert_close(own_minus_other(codes, exchanged, EXACT), -found, rtol=0, atol=1e-12)


def test_it_is_0_if_all_images_share_one_text_or_one_set_of_codes():
    codes, text, none = clouds([[5, 6, 4]]), clouds([[3, 2, 4]], seed=5), torch.zeros(1).double()
    for settings in (EXACT, TransportSettings()):
        one_text = PointClouds(*(part[:, :1].expand_as(part) for part in text))
        torch.testing.assert_close(own_minus_other(codes, one_text, settings), none, rtol=0, atol=1e-9)
        one_set = PointClouds(*(part[:, :1].expand_as(part) for part in codes))
        torch.testing.assert_close(own_minus_other(one_set, text, settings), none, rtol=0, atol=1e-9)


def test_it_does_not_depend_on_the_first_image_or_on_images_without_text():
    codes, text = clouds([[5, 6, 4, 3]]), clouds([[3, 0, 4, 2]], seed=5)
    found = own_minus_other(codes, text, EXACT)
    turned = [PointClouds(*(part.roll(1, 1) for part in cloud)) for cloud in (codes, text)]
    torch.testing.assert_close(own_minus_other(*turned, EXACT), found, rtol=0, atol=1e-12)
    fewer = [PointClouds(*(part[:, [0, 2, 3]] for part in cloud)) for cloud in (codes, text)]
    torch.testing.assert_close(own_minus_other(*fewer, EXACT), found, rtol=0, atol=1e-12)


def test_a_level_with_fewer_than_two_texts_has_none():
    codes, text = clouds([[3, 3, 3]] * 3), clouds([[2, 0, 0], [0, 0, 0], [2, 0, 1]], seed=5)
    assert own_minus_other(codes, text, EXACT).isnan().tolist() == [True, True, False]


def made(b=6, c=4, d=8, m=5, *, told):
    """Codes of three levels, of their own image if `told` and else the same in every image, and texts."""
    topic = torch.randn(b, c, generator=draw(1))
    levels = []
    for side in (6, 4, 2):
        noise = torch.randn(b if told else 1, c, side, side, generator=draw(side))
        latent = (noise + 2 * topic[..., None, None] if told else noise.repeat(b, 1, 1, 1)).requires_grad_()
        levels.append(tavq.Level(latent, latent + 0.0, torch.arange(b * side**2).view(b, side, side), torch.zeros(())))
    about = topic @ torch.randn(c, d, generator=draw(2)) + 2.0
    texts = {
        name: tavq.Units(about[:, None] + torch.randn(b, m, d, generator=draw(i)), torch.ones(b, m, dtype=torch.bool))
        for i, name in enumerate(GRANULARITIES, 3)
    }
    return tavq.Codes(tuple(levels)), texts


@pytest.mark.parametrize("told", [False, True])
def test_the_transport_cost_falls_in_vain_where_codes_say_nothing_about_their_image(told):
    torch.manual_seed(0)
    (codes, texts), align = made(told=told), TextAlignment(4, 8, projection="linear")
    optimizer, costs = torch.optim.Adam(align.parameters(), lr=0.05), []
    for _ in range(40):
        optimizer.zero_grad()
        align(codes, texts).backward()
        optimizer.step()
        costs.append(align.last["transport_cost"])
        if not told:
            assert align.last["own_minus_other"].abs().max() < 1e-5
    assert (costs[-1] < 0.8 * costs[0]).all()
    if told:
        assert (align.last["own_minus_other"] < -0.1).all()


@pytest.mark.parametrize("distribution", ["all", "gaussian", "subsample"])
def test_it_is_of_the_points_of_the_forward_and_draws_no_random_number(distribution):
    torch.manual_seed(0)
    (codes, texts), align = made(told=True), TextAlignment(4, 8, distribution=distribution, samples=4)
    torch.manual_seed(1)
    align(codes, texts)
    state = torch.get_rng_state()
    found = align.last["own_minus_other"]
    assert torch.equal(torch.get_rng_state(), state) and not found.requires_grad and found.shape == (3,)
    assert align.last["own_minus_other"] is found  # computed once
    torch.manual_seed(1)
    for index, (level, name) in enumerate(zip(codes.levels, GRANULARITIES, strict=True)):
        points = align.embed(level.quantized, index).detach()[None]
        text = F.normalize(texts[name].embeddings, dim=-1)[None]
        same = [PointClouds(part, torch.full(part.shape[:3], 1 / part.shape[2])) for part in (points, text)]
        torch.testing.assert_close(own_minus_other(*same, align.transport)[0], found[index], rtol=0, atol=2e-3)


def test_a_loss_without_transport_has_it_too():
    found = []
    for kind in (TextAlignment, UniformPlan):
        torch.manual_seed(0)
        (codes, texts), align = made(told=True), kind(4, 8)
        align(codes, texts)
        found.append(align.last["own_minus_other"])
    torch.testing.assert_close(*found)


def test_the_diagnostics_hold_no_graph_and_list_their_figures():
    torch.manual_seed(0)
    (codes, texts), align = made(told=True), TextAlignment(4, 8)
    align(codes, texts)
    latent = ref(codes.levels[0].latent)
    del codes
    gc.collect()
    assert latent() is None
    names = set(align.last)
    assert {"own_minus_other", "effective_rank"} <= names
    assert all(value.shape == (3,) for value in align.last.values())
    assert set(align.last) == names  # after reading too
    assert align.last.gradient_names == ()


def test_the_effective_rank_of_a_batch_is_that_of_an_svd():
    scale = torch.logspace(0, -3, 8, dtype=torch.float64)[:, None, None]
    codes = torch.randn(3, 8, 5, 4, generator=draw(0), dtype=torch.float64) * scale + 10.0
    for part in (codes, codes[:1, :, :1]):  # more codes than directions, and fewer
        flat = part.movedim(1, -1).reshape(-1, 8).numpy()
        values = np.linalg.svd(flat - flat.mean(0), compute_uv=False)
        share = values[values > 1e-9 * values[0]] / values.sum()
        expected = np.exp(-(share * np.log(share)).sum())
        assert effective_rank(part).item() == pytest.approx(expected, rel=1e-6)
        assert effective_rank(part.float()).item() == pytest.approx(expected, rel=1e-4)


def test_the_effective_rank_runs_from_0_to_the_width():
    line = torch.randn(50, generator=draw(0))[:, None] * torch.randn(4, generator=draw(1)) + 5.0
    assert effective_rank(line.T[None, :, None]).item() == pytest.approx(1, abs=1e-2)
    isotropic = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(isotropic[..., None, None]).item() == pytest.approx(4, rel=1e-6)
    assert effective_rank(torch.full((2, 4, 3, 3), 0.1)) == 0


def test_codes_that_are_equal_up_to_rounding_have_rank_0():
    """A straight-through output, z + (code − z), differs from the code by rounding."""
    latent, code = torch.randn(2, 4, 3, 3, generator=draw(0)), torch.randn(1, 4, 1, 1, generator=draw(1))
    passed = latent + (code - latent)
    assert passed.flatten(2).std(2).max() > 0 and effective_rank(passed) == 0
    assert effective_rank(0.01 * latent + code) > 1


def test_codes_that_are_not_finite_have_no_rank():
    codes = torch.randn(2, 4, 3, 3, generator=draw(0))
    codes[1, 2, 0, 0] = torch.inf
    assert effective_rank(codes).isnan()
