"""A control: TA-VQ in which each image has another image's text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.methods.base import Step, texts_of
from tavq_plugin.methods.tavq import TAVQ
from tavq_plugin.types import TextBatch


def one_cycle(rows: Sequence[int], seed: int) -> dict[int, int]:
    """Map each row to another by one cycle through all rows; with two or more rows, none maps to itself.

    >>> sorted(one_cycle([4, 7, 9], seed=0)) == sorted(one_cycle([4, 7, 9], seed=0).values())
    True
    """
    order = [rows[i] for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()]
    return dict(zip(order, order[1:] + order[:1], strict=True))


class TAVQShuffled(TAVQ):
    """Our control: the loss, heads and texts of TA-VQ, but each image has another image's text for the whole run.

    Any effect of TA-VQ that remains here does not come from what a text says about its image. The settings are those of
    `TAVQ`. Raises ValueError for fewer than two training images.
    """

    name = "tavq-shuffled"
    other: Tensor  # n_train, int64: the row whose text each image has

    def prepare(self, corpus: Corpus, seed: int) -> None:
        """Deal the texts; ValueError for fewer than two training images."""
        if corpus.n_train < 2:
            raise ValueError(f"{corpus.n_train} training images: shuffling texts needs at least two; give more images")
        self.corpus, other = corpus, one_cycle(corpus.train_rows, seed)
        self.register_buffer("other", torch.tensor([other[row] for row in corpus.train_rows]))

    def texts(self, step: Step) -> TextBatch:
        """The units of the other images' texts."""
        return texts_of(self.corpus, self.other[step.rows.to(self.other.device)], step.images.device)
