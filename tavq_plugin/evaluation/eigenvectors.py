"""Eigenvalues and eigenvectors of symmetric matrices, also of those that torch's solver gives up on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues in rising order and their vectors as columns; c c float64, symmetric, on the CPU -> c, c c.

    torch's LAPACK does not converge for some matrices with many eigenvalues of 0, such as those of histograms with
    codes that no image has. NumPy brings another LAPACK, which is tried then. Raises LinAlgError if both fail.

    >>> values, vectors = eigenvectors(torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    >>> values.tolist(), vectors.abs().tolist()
    ([1.0, 2.0], [[0.0, 1.0], [1.0, 0.0]])
    """
    try:
        return tuple(torch.linalg.eigh(matrix))
    except torch.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(matrix.numpy())
        return torch.from_numpy(values), torch.from_numpy(vectors)
