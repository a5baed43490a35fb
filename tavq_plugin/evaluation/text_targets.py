"""The text side of an evaluation, computed once for all runs: the targets of the probes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.evaluation.metrics.words import frequent_words, word_presence
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.evaluation.word_cooccurrence import cooccurrence_vectors
from tavq_plugin.types import GRANULARITIES, Units

KNOWN_FROM = 5  # training texts that a word of the unseen vectors occurs in; fewer if there are few texts
UNSEEN_WIDTH = 100  # of the unseen vectors, at most


class TextTargets:
    """Targets from a corpus' texts. Lists have one entry per level, fine → coarse.

    top_words: the w most frequent words of all training rows.
    word_vectors: centred embeddings of the top words, w d, unit length.
    train_words, held_out_words: which of the top words each text has, n w bool.
    train_means, held_out_means: mean unit embedding of each text, n d; 0 for a text without units.
    train_has_text, held_out_has_text: which texts have units, n bool.
    train_unseen, held_out_unseen: mean co-occurrence vector of each text's known words, minus the training texts' mean,
        n width; 0 for a text without known words. Not per level. Width 0 if fewer than three words are known.
    train_unseen_has_text, held_out_unseen_has_text: which texts have known words, n bool.
    train_boxes, held_out_boxes: the boxes of each image; empty if the corpus has none.

    Raises ValueError if fewer than `settings.min_text` training or held-out images have text.
    """

    def __init__(self, corpus: Corpus, settings: EvaluationSettings) -> None:
        self.corpus, self.settings = corpus, settings
        store, held_out = corpus.store, corpus.held_out_rows
        self.probe_rows = corpus.train_rows[: settings.probe_rows]
        self.top_words = frequent_words(store, corpus.train_rows, settings.words)
        self.train_words = word_presence(store, self.probe_rows, self.top_words)
        self.held_out_words = word_presence(store, held_out, self.top_words)
        self.train_means = self._mean_units(self.probe_rows)
        self.held_out_means = self._mean_units(held_out)
        self.train_has_text = [means.abs().sum(1) > 0 for means in self.train_means]
        self.held_out_has_text = [means.abs().sum(1) > 0 for means in self.held_out_means]
        self._refuse_few_texts()
        unseen, has_text = self._unseen_vectors([*self.probe_rows, *held_out])
        self.train_unseen, self.held_out_unseen = unseen.split([len(self.probe_rows), len(held_out)])
        self.train_unseen_has_text, self.held_out_unseen_has_text = has_text.split(
            [len(self.probe_rows), len(held_out)]
        )
        boxes: Sequence[Sequence[dict[str, Any]]] = getattr(corpus, "boxes", ())
        self.train_boxes = [boxes[row] for row in self.probe_rows] if len(boxes) else []
        self.held_out_boxes = [boxes[row] for row in held_out] if len(boxes) else []
        table_row = {word: i for i, word in enumerate(store.vocabulary)}
        vectors = store.table[[table_row[word] for word in self.top_words]].float() - store.mean("word")
        self.word_vectors = F.normalize(vectors, dim=1)

    def _refuse_few_texts(self) -> None:
        sides = [torch.stack(side).any(0) for side in (self.train_has_text, self.held_out_has_text)]
        train, held_out = (int(side.sum()) for side in sides)
        if min(train, held_out) < self.settings.min_text:
            raise ValueError(
                f"{train} training and {held_out} held-out images have text, of {len(sides[0])} and {len(sides[1])}: "
                f"text metrics need at least {self.settings.min_text} of each; give more captions, a larger --eval or "
                "--train, or another split"
            )

    def _unseen_vectors(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean co-occurrence vectors of some texts, b width, and which have known words, b bool.

        Everything is learned from the training texts. A word that all of them have tells nothing: it has a vector of
        zeros, and is not known.
        """
        store, train = self.corpus.store, self.corpus.train_rows
        least = max(2, min(KNOWN_FROM, len(train) // 10))
        words = sorted(word for word, n in store.subset(train).unit_frequency("word").items() if n >= least)
        vectors = torch.zeros(0, 0, dtype=torch.float64)
        if len(words) >= 3:
            vectors = cooccurrence_vectors(word_presence(store, train, words), width=UNSEEN_WIDTH)
            known = vectors.norm(dim=1) > 1e-6
            words, vectors = [word for word, is_known in zip(words, known, strict=True) if is_known], vectors[known]
        if len(words) < 3:
            return torch.zeros(len(rows), 0, dtype=torch.float64), torch.zeros(len(rows), dtype=torch.bool)

        def means(some: Sequence[int]) -> tuple[Tensor, Tensor]:
            present = word_presence(store, some, words).double()
            return present @ vectors / present.sum(1, keepdim=True).clamp(min=1), present.any(1)

        of_train, has = means(train)
        unseen, has_text = means(rows)
        return (unseen - of_train[has].mean(0)) * has_text[:, None], has_text

    def _mean_units(self, rows: range) -> list[Tensor]:
        parts = []
        for start in range(0, len(rows), 500):
            batch = self.corpus.store.batch(rows[start : start + 500])
            parts.append([_mean_embedding(batch[name]) for name in GRANULARITIES])
        return [torch.cat(level) for level in zip(*parts, strict=True)]

    @cached_property
    def transport_images(self) -> Tensor:
        """Positions of the held-out images for retrieval by transport: the first that have text at every level."""
        return torch.stack(self.held_out_has_text).all(0).nonzero().flatten()[: self.settings.transport_images]

    @cached_property
    def transport_units(self) -> list[Units]:
        """The text units of those images, by level."""
        batch = self.corpus.store.batch(rows=self.corpus.n_train + self.transport_images)
        return [batch[name] for name in GRANULARITIES]


def _mean_embedding(units: Units) -> Tensor:
    return (units.embeddings * units.mask[..., None]).sum(1) / units.mask.sum(1, keepdim=True).clamp(min=1)
