"""Unit embeddings: a table of distinct strings and ragged lists of its rows, so that training never encodes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tavq_plugin.text import shard_file as shards
from tavq_plugin.text.encoder import TextEncoder
from tavq_plugin.text.ragged import Ragged, gather
from tavq_plugin.text.shard_file import Shard
from tavq_plugin.text.splitter import Splitter, TextUnits
from tavq_plugin.types import GRANULARITIES, Units

Rows = Sequence[int] | Sequence[str] | Tensor


@dataclass(frozen=True)
class TextStore:
    """The units of n texts; `batch(rows)` gives them padded, centred on the corpus mean.

    Nothing is changed in place: `subset`, `centred_on` and `with_mean_of` give a new store on the same table.
    """

    ids: tuple[str, ...]  # of the texts, usually image names
    table: Tensor  # u d, one row a distinct string
    vocabulary: tuple[str, ...]  # u
    lists: Mapping[str, Ragged]  # by granularity
    means: Mapping[str, Tensor]  # by granularity, d: what `batch` centres on
    fingerprint: str = ""  # of encoder and splitter
    split_units: int = 0  # strings beyond the encoder's limit, encoded in pieces
    _row: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_row", {name: i for i, name in enumerate(self.ids)})
        if len(self._row) < len(self.ids):
            double = next(name for i, name in enumerate(self.ids) if self._row[name] != i)
            raise ValueError(f"id {double!r} is given twice: every text needs an id of its own")

    @classmethod
    def build(
        cls,
        texts: Sequence[str | None],
        encoder: TextEncoder,
        ids: Sequence[str] | None = None,
        *,
        centre_on: Rows | None = None,
        splitter: Splitter | None = None,
        dtype: torch.dtype = torch.float16,
        progress: bool | None = None,
    ) -> TextStore:
        """Split and encode n texts, each distinct unit once; an empty or missing text is kept and counted.

        The mean is fitted on the texts of `centre_on` (rows or ids; default all): name the training ones, and
        held-out texts fit nothing.
        """
        if isinstance(texts, str):
            raise TypeError("build takes a list of texts, got one string: give [text]")
        names = tuple(map(str, range(len(texts)))) if ids is None else tuple(ids)
        if len(names) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(names)} ids: give one id a text")
        splitter = splitter or Splitter()
        rows: dict[str, int] = {}
        lists: dict[str, list[list[int]]] = {granularity: [] for granularity in GRANULARITIES}
        for text in texts:
            units = splitter(text)
            for granularity, found in lists.items():
                found.append(_rows(units, granularity, rows))
        before = encoder.stats.split
        table = encoder.encode(list(rows), progress=progress).to(dtype)
        store = cls(
            ids=names,
            table=table,
            vocabulary=tuple(rows),
            lists={granularity: Ragged.of(found) for granularity, found in lists.items()},
            means={granularity: torch.zeros(encoder.dim) for granularity in lists},
            fingerprint=f"{encoder.fingerprint}|{splitter.fingerprint}",
            split_units=encoder.stats.split - before,
        )
        return store.centred_on(range(len(names)) if centre_on is None else centre_on)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Width d of the embeddings."""
        return self.table.shape[1]

    def rows(self, rows: Rows) -> Tensor:
        """Row numbers of rows or ids, int64 b; KeyError or IndexError for what the store does not hold."""
        if not isinstance(rows, Tensor):
            missing = [name for name in rows if isinstance(name, str) and name not in self._row]
            if missing:
                raise KeyError(f"the store has no text for {missing[0]!r} ({len(missing)} of {len(rows)} ids missing)")
            rows = torch.tensor([self._row[r] if isinstance(r, str) else int(r) for r in rows], dtype=torch.long)
        rows = rows.to(self.table.device, torch.long)
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(self)):
            raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} asked of a store of {len(self)} texts")
        return rows

    def batch(self, rows: Rows, device: torch.device | str | None = None, *, centred: bool = True) -> dict[str, Units]:
        """Padded units of some texts: granularity → b m d float32, zero where masked.

        `centred`: less the store's mean of that granularity, then L2-normalised.
        """
        rows = self.rows(rows)
        batch = {}
        for granularity, ragged in self.lists.items():
            units = gather(self.table, *ragged.take(rows), self.means[granularity] if centred else None)
            batch[granularity] = units if device is None else units.to(device)
        return batch

    def units(self, row: int | str, granularity: str) -> list[str]:
        """The strings behind one text's units, in the order `batch` gives them."""
        ids, mask = self._ragged(granularity).take(self.rows([row]))
        return [self.vocabulary[i] for i in ids[mask].tolist()]

    def counts(self) -> dict[str, int]:
        """Texts, texts without any unit, units by granularity, distinct strings, strings encoded in pieces."""
        lengths = torch.stack([ragged.offsets.diff() for ragged in self.lists.values()])
        counts = {"texts": len(self), "without_text": int((lengths.sum(0) == 0).sum())}
        counts |= {granularity: len(ragged.ids) for granularity, ragged in self.lists.items()}
        return counts | {"distinct": len(self.vocabulary), "in_pieces": self.split_units}

    def mean(self, granularity: str) -> Tensor:
        """The mean that `batch` centres on: over all units of the texts it was fitted on; d float32."""
        self._ragged(granularity)
        return self.means[granularity]

    def unit_frequency(self, granularity: str = "word") -> dict[str, int]:
        """In how many texts each unit stands (each counts once a text), most frequent first."""
        ids = self._ragged(granularity).ids
        counts = torch.bincount(ids, minlength=len(self.vocabulary))
        order = counts.argsort(descending=True, stable=True).tolist()
        numbers = counts.tolist()
        return {self.vocabulary[i]: numbers[i] for i in order if numbers[i]}

    def centred_on(self, rows: Rows) -> TextStore:
        """The same units with the mean fitted on some texts only."""
        rows = self.rows(rows)
        means = {}
        for granularity, ragged in self.lists.items():
            ids = ragged.subset(rows).ids
            uses = torch.bincount(ids, minlength=len(self.table)).float()
            total = torch.zeros(self.dim, device=self.table.device)
            for start in range(0, len(self.table), 65536):  # no float32 copy of a large table
                part = slice(start, start + 65536)
                total += uses[part] @ self.table[part].float()
            means[granularity] = total / max(1, len(ids))
        return replace(self, means=means)

    def with_mean_of(self, other: TextStore) -> TextStore:
        """The same units, centred on another store's means: for held-out texts, the training store's."""
        if other.dim != self.dim or other.fingerprint != self.fingerprint:
            raise ValueError(f"stores of different encoders: {self.fingerprint!r} and {other.fingerprint!r}")
        return replace(self, means={name: mean.to(self.table.device) for name, mean in other.means.items()})

    def subset(self, rows: Rows) -> TextStore:
        """Some texts, in the order given, on the same table and with the same means."""
        rows = self.rows(rows)
        names = tuple(self.ids[row] for row in rows.tolist())
        return replace(self, ids=names, lists={name: ragged.subset(rows) for name, ragged in self.lists.items()})

    def to(self, device: torch.device | str) -> TextStore:
        """The store with its table on another device, where `batch` then gathers."""
        lists = {name: Ragged(r.ids.to(device), r.offsets.to(device)) for name, r in self.lists.items()}
        means = {name: mean.to(device) for name, mean in self.means.items()}
        return replace(self, table=self.table.to(device), lists=lists, means=means)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: whole under its name, or not at all."""
        shards.write(path, self.shard())

    def shard(self, **about: Any) -> Shard:
        """The store as the content of one file, with what is to be known of it."""
        about["in_pieces"] = self.split_units
        return Shard(self.ids, self.table, self.vocabulary, self.lists, self.means, self.fingerprint, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TextStore:
        """Read what `save` wrote, or one shard of a prepared store; its table is mapped, not copied, into memory."""
        shard = shards.read(path)
        return cls(
            ids=tuple(shard.ids),
            table=shard.table,
            vocabulary=tuple(shard.vocabulary),
            lists={name: Ragged(ragged.ids.long(), ragged.offsets.long()) for name, ragged in shard.lists.items()},
            means=shard.means,
            fingerprint=shard.fingerprint,
            split_units=shard.about["in_pieces"],
        )

    def _ragged(self, granularity: str) -> Ragged:
        if granularity not in self.lists:
            raise KeyError(f"no granularity {granularity!r}: one of {', '.join(self.lists)}")
        return self.lists[granularity]


def _rows(units: TextUnits, granularity: str, vocabulary: dict[str, int]) -> list[int]:
    return [vocabulary.setdefault(text, len(vocabulary)) for text in units.texts(granularity)]
