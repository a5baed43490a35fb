"""Texts given as plain strings during training: each is split and encoded once, then remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from tavq_plugin.text.encoder import TextEncoder
from tavq_plugin.text.ragged import RaggedRows, padded_units
from tavq_plugin.text.splitter import Splitter
from tavq_plugin.types import GRANULARITIES, Units


class TextCache:
    """Strings → `TextBatch`, with the units that `TextStore` gives.

    Args:
        encoder: Encodes units that were not seen before.
        means: Granularity → d, subtracted from the units, such as a store's. Default: running means over the distinct
            units seen so far.
        splitter: Default: `Splitter()`.
        limit: Most distinct units in memory (500 000 take 400 MB at d = 384). Above it, everything but the running
            means is forgotten.

    Raises:
        ValueError: `limit` is below 1.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        means: Mapping[str, Tensor] | None = None,
        splitter: Splitter | None = None,
        limit: int = 500_000,
    ) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1 unit, got {limit}")
        self.encoder, self.splitter, self.limit = encoder, splitter or Splitter(), limit
        self._given_means = None if means is None else dict(means)
        self._sums = {name: torch.zeros(encoder.dim) for name in GRANULARITIES}
        self._counts = dict.fromkeys(GRANULARITIES, 0)
        self.without_text = 0  # texts without units, counted at each call
        self.clear()

    def __len__(self) -> int:
        return len(self._vocabulary)

    @property
    def dim(self) -> int:
        """Width d of the embeddings."""
        return self.encoder.dim

    @property
    def means(self) -> dict[str, Tensor]:
        """The means that `batch` subtracts: granularity → d."""
        return self._given_means or {name: total / max(1, self._counts[name]) for name, total in self._sums.items()}

    def clear(self) -> None:
        """Forget texts and embeddings; the running means stay."""
        self._vocabulary: dict[str, int] = {}
        self._table = torch.empty(0, self.encoder.dim, dtype=torch.float16)
        self._texts: dict[str, dict[str, list[int]]] = {}
        self._counted: dict[str, set[int]] = {name: set() for name in GRANULARITIES}

    def add(self, texts: Sequence[str | None], *, learn: bool = True, progress: bool | None = None) -> None:
        """Split and encode new texts; `learn=False` leaves the running means as they are."""
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, got a single string: give [text]")
        rows = self._vocabulary
        known = len(rows)
        try:
            for text in dict.fromkeys(text or "" for text in texts):
                if text not in self._texts:
                    units = self.splitter(text)
                    self._texts[text] = {
                        name: [rows.setdefault(unit, len(rows)) for unit in units.texts(name)] for name in GRANULARITIES
                    }
            if len(rows) > known:
                new = list(islice(reversed(rows), len(rows) - known))[::-1]
                self._grow(self.encoder.encode(new, progress=progress))
        except BaseException:  # also Ctrl-C: every unit in the vocabulary must have its row
            self.clear()
            raise
        if learn and self._given_means is None:
            for name, counted in self._counted.items():
                fresh = sorted({i for text in texts for i in self._texts[text or ""][name]} - counted)
                counted.update(fresh)
                self._counts[name] += len(fresh)
                self._sums[name] += self._table[fresh].float().sum(0)

    def batch(
        self, texts: Sequence[str | None], device: torch.device | str | None = None, *, learn: bool = True
    ) -> dict[str, Units]:
        """Padded units of some texts; None or an empty text is a masked row. Give `learn=False` for held-out texts."""
        if len(self) > self.limit:
            self.clear()
        self.add(texts, learn=learn)
        means, batch = self.means, {}
        for name in GRANULARITIES:
            lists = [self._texts[text or ""][name] for text in texts]
            padded = RaggedRows.from_lists(lists).pad(torch.arange(len(lists)))
            units = padded_units(self._table[: max(1, len(self))], *padded, means[name].to("cpu"))
            batch[name] = units if device is None else units.to(device)
        self.without_text += sum(not any(self._texts[text or ""].values()) for text in texts)
        return batch

    def units(self, texts: Sequence[str | None], granularity: str) -> list[list[str]]:
        """The units of some texts, in the order that `batch` gives them."""
        self.add(texts, learn=False)
        names = list(self._vocabulary)
        return [[names[row] for row in self._texts[text or ""][granularity]] for text in texts]

    def _grow(self, rows: Tensor) -> None:
        """Append rows; a full table doubles, so each row is copied only a few times."""
        end = len(self._vocabulary)
        if end > len(self._table):
            larger = torch.zeros(max(1024, end, 2 * len(self._table)), self.encoder.dim, dtype=torch.float16)
            larger[: end - len(rows)] = self._table[: end - len(rows)]
            self._table = larger
        self._table[end - len(rows) : end] = rows
