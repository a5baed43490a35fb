"""Probes and metrics against known answers, plain loops and scikit-learn."""

import json
import math

import pytest
import torch

from tavq_plugin.evaluation.metrics.average_precision import average_precision_per_image
from tavq_plugin.evaluation.metrics.codebook import codebook_use
from tavq_plugin.evaluation.metrics.image import psnr
from tavq_plugin.evaluation.metrics.retrieval import recall
from tavq_plugin.evaluation.probes.ridge import (
    PENALTIES,
    DecomposedFeatures,
    PenaltyAtEdge,
    choose_ridges,
    fit_ridge,
    places_of,
)
from tavq_plugin.evaluation.settings import EvaluationSettings


def test_a_uniform_codebook_has_perplexity_k():
    use = codebook_use(torch.arange(16).repeat(3), size=16)
    assert use.usage == 100 and use.dead == 0 and use.perplexity == pytest.approx(16)


def test_indices_beyond_the_codebook_are_refused():
    with pytest.raises(ValueError, match="reach 4 and the codebook has 4"):
        codebook_use(torch.tensor([4]), size=4)


def test_psnr_equals_its_closed_form():
    images = torch.zeros(2, 3, 16, 16)
    off = images + torch.tensor([10.0, 20.0]).view(2, 1, 1, 1) / 127.5
    expected = [10 * math.log10(255**2 / level**2) for level in (10, 20)]
    assert psnr(off, images).tolist() == pytest.approx(expected, abs=1e-4)


def test_ridge_equals_augmented_least_squares():
    torch.manual_seed(0)
    x, y = torch.randn(50, 4, dtype=torch.float64) * 3 + 1, torch.randn(50, 2, dtype=torch.float64)
    fit = fit_ridge(x, y, penalty=7.0)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    # the penalty as extra rows: √penalty times the identity, with targets 0
    a = torch.cat([z, 7.0**0.5 * torch.eye(4, dtype=torch.float64)])
    b = torch.cat([y - y.mean(0), torch.zeros(4, 2, dtype=torch.float64)])
    torch.testing.assert_close(fit.weight, torch.linalg.lstsq(a, b).solution)
    torch.testing.assert_close(fit.predict(x), z @ fit.weight + y.mean(0))


def test_ridge_is_finite_for_a_feature_that_never_varies():
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    assert fit_ridge(x, x[:, 1:]).predict(x).isfinite().all()


def rows_with_signal(n, c, d, *, noise=1.0, seed=0):
    """Features of different scales and offsets, and targets that depend on them; n c, n d float64."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, generator=draw, dtype=torch.float64) * torch.rand(c, generator=draw).double() * 4 + 3
    weight = torch.randn(c, d, generator=draw, dtype=torch.float64) / c**0.5
    return x, (x - 3) @ weight + noise * torch.randn(n, d, generator=draw, dtype=torch.float64) + 7


@pytest.mark.parametrize("c", [5, 60])  # fewer features than rows, and more
def test_the_leave_one_out_error_equals_a_refit_without_each_row(c):
    x, y = rows_with_signal(24, c, 2)
    x[:, 1] = 4.0  # never varies
    z = (x - x.mean(0)) / torch.where(x.std(0, correction=0) > 0, x.std(0, correction=0), torch.inf)
    expected = []
    for penalty in (0.01, 3.0, 500.0):
        error = 0.0
        for i in range(len(z)):
            rest = torch.arange(len(z)) != i
            a, b = z[rest] - z[rest].mean(0), y[rest] - y[rest].mean(0)
            weight = torch.linalg.solve(a.T @ a + penalty * torch.eye(c, dtype=torch.float64), a.T @ b)
            error += (y[i] - y[rest].mean(0) - (z[i] - z[rest].mean(0)) @ weight).square().sum().item()
        expected.append(error)
    assert DecomposedFeatures(x).leave_one_out_errors(y, (0.01, 3.0, 500.0)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("c", "noise"), [(6, 3.0), (6, 4.0), (90, 0.3), (90, 1.0)])
def test_chosen_ridges_equal_those_of_scikit_learn(c, noise):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = rows_with_signal(50, c, 6, noise=noise)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    for ridge, target in zip(choose_ridges(x, [y[:, :3], y[:, 3:]]), (y[:, :3], y[:, 3:]), strict=True):
        theirs = linear_model.RidgeCV(alphas=PENALTIES).fit(z, target.numpy())
        assert PENALTIES[0] < theirs.alpha_ < PENALTIES[-1] and ridge.penalty == theirs.alpha_
        torch.testing.assert_close(ridge.weight, torch.from_numpy(theirs.coef_).T)
        torch.testing.assert_close(ridge.predict(x), torch.from_numpy(theirs.predict(z)))
        torch.testing.assert_close(fit_ridge(x, target, penalty=ridge.penalty).weight, ridge.weight)


@pytest.mark.parametrize("c", [6, 70])
def test_features_in_many_blocks_give_the_same_ridge(c):
    x, y = rows_with_signal(40, c, 2)
    whole, parts = DecomposedFeatures(x), DecomposedFeatures(x, block=100, keep=0)
    assert parts.leave_one_out_errors(y, PENALTIES) == pytest.approx(whole.leave_one_out_errors(y, PENALTIES))
    torch.testing.assert_close(parts.ridge(y, 3.0)._asdict(), whole.ridge(y, 3.0)._asdict())


def test_the_grid_is_widened_where_its_edge_is_best():
    x, y = rows_with_signal(60, 20, 1, noise=3.0)
    (full,) = choose_ridges(x, [y], penalties=[10.0**i for i in range(-4, 7)])
    for narrow in ((0.1, 1), (1e5, 1e6)):
        assert choose_ridges(x, [y], penalties=narrow)[0].penalty == pytest.approx(full.penalty)


def test_features_that_say_nothing_are_refused_as_such():
    draw = torch.Generator().manual_seed(0)
    y = torch.randn(200, 3, generator=draw)
    for features in (torch.randn(200, 400, generator=draw), torch.ones(200, 4)):
        with pytest.raises(PenaltyAtEdge, match="predict the text no better than a constant"):
            choose_ridges(features, [y])


def test_a_best_penalty_beyond_the_widened_grid_is_refused():
    x, y = rows_with_signal(300, 2, 1, noise=3.0)
    with pytest.raises(PenaltyAtEdge, match="the greatest is best, so the best one lies above"):
        choose_ridges(x, [y], penalties=(1e-8, 1e-7))
    base = torch.randn(300, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randn(300, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with pytest.raises(PenaltyAtEdge, match="the least is best, so the best one lies below"):
        choose_ridges(torch.cat([base, base + 1e-5 * y], 1), [y], penalties=(1e-6, 1e-5))


def test_a_lower_edge_where_the_error_no_longer_falls_is_taken():
    x, y = rows_with_signal(60, 3, 1, noise=0.0)
    (ridge,) = choose_ridges(x, [y])
    assert ridge.penalty == pytest.approx(1e-4)
    torch.testing.assert_close(ridge.predict(x), y, atol=1e-4, rtol=0)


def test_bad_input_of_a_probe_is_refused():
    x, y = rows_with_signal(20, 3, 1)
    for grid, words in (
        ((300.0,), "a grid of 1: give at least two"),
        ((), "a grid of 0"),
        ((1.0, 10.0, 10.0), r"must be ascending, each once: give \(1.0, 10.0\)"),
        ((10.0, 1.0), "must be ascending"),
        ((0.0, 1.0), "finite and above 0"),
        ((1.0, math.nan), "finite and above 0"),
        ((1.0, math.inf), "finite and above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            choose_ridges(x, [y], penalties=grid)
        with pytest.raises(ValueError, match=words):
            EvaluationSettings(penalties=grid)
    for features, targets, words in (
        (x.where(x < x.max(), torch.nan), y, "features hold NaN"),
        (x, y.where(y < y.max(), torch.inf), "targets hold NaN or infinity"),
        (x, y[:-1], "20 rows of features for 19 of targets"),
        (x, torch.full_like(y, 0.1), "the targets never vary"),
        (x, y[:, :0], "the targets never vary"),
        (x[:2], y[:2], "at least three rows"),
        (x[:, 0], y, "n c, at least three rows"),
    ):
        with pytest.raises(ValueError, match=words):
            choose_ridges(features, [targets])


def test_places_are_averaged_to_at_most_eight_a_side():
    grid = torch.arange(2 * 16 * 16.0).reshape(1, 2, 16, 16)
    assert places_of(grid)[0, 1, 3, 2].item() == grid[0, 1, 6:8, 4:6].mean().item()
    torch.testing.assert_close(places_of(grid[..., :4, :5]), grid[..., :4, :5])
    with pytest.raises(ValueError, match="give b c h w"):
        places_of(grid[0])


def test_settings_survive_json():
    settings = EvaluationSettings(penalties=(1, 10**0.5, 1e3), min_text=0)
    assert EvaluationSettings(**json.loads(json.dumps(settings.to_dict()))) == settings
    assert json.loads(json.dumps(settings.to_dict())) == settings.to_dict()
    for name in ("permutations", "min_text"):
        with pytest.raises(ValueError, match=f"{name} must be at least 2"):
            EvaluationSettings(**{name: 1})


def test_recall_equals_a_plain_loop():
    torch.manual_seed(1)
    q, k = torch.randn(30, 5), torch.randn(30, 5)
    qc, kc = q - q.mean(0), k - k.mean(0)
    hits = 0
    for i in range(30):
        scores = [torch.cosine_similarity(qc[i], kc[j], dim=0).item() for j in range(30)]
        hits += sorted(range(30), key=lambda j: -scores[j]).index(i) < 10
    assert recall(q, k, at=(10,))["r10"] == pytest.approx(100 * hits / 30)


def test_constant_queries_score_as_chance():
    assert recall(torch.ones(100, 3), torch.randn(100, 3), at=(1, 50))["r50"] == pytest.approx(50)


def test_average_precision_of_a_known_ranking():
    scores = torch.tensor([[4.0, 0.0], [3.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    present = torch.tensor([[True, False], [False, False], [True, False], [False, False]])
    assert average_precision_per_image(scores, present).mean().item() == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_recall_is_an_exact_share_of_the_queries():
    keys = torch.eye(500, dtype=torch.float64)
    queries = keys.clone()
    queries[20:] = keys[20:].roll(1, 0)  # 20 of 500 find their own first
    assert recall(queries, keys, at=(1,)) == {"r1": pytest.approx(4.0, abs=1e-12)}
