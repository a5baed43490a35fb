"""Eigenvectors, also where torch's solver gives up."""

import pytest
import torch

from tavq_plugin.evaluation.eigenvectors import eigenvectors
from tavq_plugin.evaluation.probes.ridge import DecomposedFeatures


def gives_up(matrix):
    raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")


@pytest.mark.parametrize("gives_up_first", [False, True])
def test_vectors_and_values_make_up_the_matrix(monkeypatch, gives_up_first):
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64)
    matrix = torch.zeros(7, 7, dtype=torch.float64)  # rows and columns of zeros: features that never vary
    matrix[1:5, 1:5] = x.T @ x
    if gives_up_first:
        monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    values, vectors = eigenvectors(matrix)
    torch.testing.assert_close((vectors * values) @ vectors.T, matrix)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(7, dtype=torch.float64))
    assert (values.diff() >= 0).all()


def test_a_probe_is_fitted_where_torch_gives_up(monkeypatch):
    torch.manual_seed(0)
    features = torch.randint(0, 3, (30, 8)).double()
    features[:, 3] = 0
    targets = features @ torch.randn(8, 2).double() + 0.1 * torch.randn(30, 2)
    expected = DecomposedFeatures(features).choose_ridge(targets)
    monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    found = DecomposedFeatures(features).choose_ridge(targets)
    assert found.penalty == expected.penalty
    torch.testing.assert_close(found.predict(features), expected.predict(features))
