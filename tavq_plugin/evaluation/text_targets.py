"""The text side of an evaluation, computed once for all runs: the targets of the probes."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.evaluation.metrics.words import frequent_words, word_presence
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.types import GRANULARITIES, Units


class TextTargets:
    """Targets from a corpus' texts. Lists have one entry per level, fine → coarse.

    top_words: the w most frequent words of all training rows.
    word_vectors: centred embeddings of the top words, w d, unit length.
    train_words, held_out_words: which of the top words each text has, n w bool.
    train_means, held_out_means: mean unit embedding of each text, n d; 0 for a text without units.
    train_has_text, held_out_has_text: which texts have units, n bool.
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
        table_row = {word: i for i, word in enumerate(store.vocabulary)}
        vectors = store.table[[table_row[word] for word in self.top_words]].float() - store.mean("word")
        self.word_vectors = F.normalize(vectors, dim=1)

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
        batch = self.corpus.store.batch([self.corpus.n_train + i for i in self.transport_images.tolist()])
        return [batch[name] for name in GRANULARITIES]


def _mean_embedding(units: Units) -> Tensor:
    return (units.embeddings * units.mask[..., None]).sum(1) / units.mask.sum(1, keepdim=True).clamp(min=1)
