"""Metrics against known answers and plain loops."""

import math

import pytest
import torch

from tavq_plugin.evaluation.metrics.codebook import codebook_use
from tavq_plugin.evaluation.metrics.image import psnr
from tavq_plugin.evaluation.metrics.retrieval import average_precision_per_image, recall
from tavq_plugin.evaluation.probes import fit_ridge


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
