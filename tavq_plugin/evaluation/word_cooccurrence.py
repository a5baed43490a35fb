"""Word vectors from which words the training texts use together: a text encoder that no method was trained with."""

from __future__ import annotations

from torch import Tensor

from tavq_plugin.evaluation.eigenvectors import eigenvectors


def cooccurrence_vectors(presence: Tensor, *, width: int = 100) -> Tensor:
    """Vectors of words from the texts that hold them; n v bool -> v min(width, v − 1), float64.

    With C the number of texts that two words share, the vectors are U √S of the truncated singular value decomposition
    of the positive pointwise mutual information, max(0, log(n C_ij / (C_ii C_jj))). A word's company are other words:
    the diagonal is 0. A word that no text has gets a vector of zeros. Each column's largest entry is positive.

    Raises ValueError for fewer than two words, or a width below 1.

    >>> import torch
    >>> texts = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).bool()
    >>> vectors = cooccurrence_vectors(texts, width=2)
    >>> torch.cosine_similarity(vectors[0], vectors[1:]).abs().round(decimals=3)
    tensor([1., 0., 0.], dtype=torch.float64)
    """
    if presence.ndim != 2 or presence.shape[1] < 2 or width < 1:
        raise ValueError(
            f"presence is {tuple(presence.shape)} and width {width}: give n v, at least two words, and width 1"
        )
    v = presence.shape[1]
    information = positive_mutual_information(presence)
    values, vectors = eigenvectors(information)  # a symmetric matrix: its singular values are |eigenvalues|
    chosen = values.abs().argsort(descending=True, stable=True)[: min(width, v - 1)]
    vectors = vectors[:, chosen]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * largest.sign() * values[chosen].abs().sqrt()


def positive_mutual_information(presence: Tensor) -> Tensor:
    """Positive pointwise mutual information of every two words over texts; n v bool -> v v."""
    present = presence.double()
    shared = present.T @ present
    alone = shared.diagonal()
    return information_of_counts(shared, alone[:, None], alone, len(presence))


def information_of_counts(together: Tensor, alone: Tensor, other_alone: Tensor, n: int) -> Tensor:
    """max(0, log(n C_ij / (C_i C_j))) of counts among n, in nats; k v, k 1, v -> k v. 0 where two never meet.

    >>> import torch
    >>> information_of_counts(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0]]), torch.tensor([2.0, 2.0]), 4)
    tensor([[0.6931, 0.0000]])
    """
    information = (together * n / (alone * other_alone)).log()
    return information.nan_to_num(0.0, neginf=0.0).clamp(min=0)  # 0/0: one that none has; log 0: never together
