"""Unit embeddings, encoded before training: a table with one row per distinct string, and the rows of each text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from tavq_plugin.text.encoder import TextEncoder
from tavq_plugin.text.ragged import RaggedRows, padded_units
from tavq_plugin.text.shard_file import Shard, read_shard, write_shard
from tavq_plugin.text.splitter import Splitter
from tavq_plugin.text.text_id import refuse_ambiguous, text_id
from tavq_plugin.types import GRANULARITIES, Units

Rows = Sequence[int] | Sequence[str] | Tensor


def texts_or_rows(texts: Rows | None, rows: Sequence[int] | Tensor | None) -> Rows:
    """What `batch` was given: texts as they are, or row numbers as a tensor."""
    if (texts is None) == (rows is None):
        raise TypeError("give texts (ids), or rows= (row numbers), and not both")
    if texts is not None:
        return texts
    if not isinstance(rows, Tensor) and any(isinstance(row, str) for row in cast(Sequence[int], rows)):
        raise TypeError("rows= takes row numbers: give ids as the first argument")
    return torch.as_tensor(rows, dtype=torch.long)


@dataclass(frozen=True)
class TextStore:
    """The units of n texts; `batch` gives them padded and centred on the corpus mean.

    A store never changes: `subset`, `centred_on` and `with_mean_of` give a new store on the same table.
    """

    ids: tuple[str, ...]  # of the texts, usually image names
    table: Tensor  # u d, one row per distinct string
    vocabulary: tuple[str, ...]  # u
    lists: Mapping[str, RaggedRows]  # granularity → the table rows of each text
    means: Mapping[str, Tensor]  # granularity → d, the mean that `batch` subtracts
    fingerprint: str = ""  # of encoder and splitter
    split_units: int = 0  # strings longer than the encoder's limit, which were encoded in pieces
    unread: int = 0  # texts with letters of a script that the tagger does not know, which are in sentences only
    _row: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_row", {name: i for i, name in enumerate(self.ids)})
        if len(self._row) < len(self.ids):
            repeated = next(name for i, name in enumerate(self.ids) if self._row[name] != i)
            raise ValueError(f"id {repeated!r} is given twice: give each text its own id")

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
        """Split and encode n texts, each distinct unit once; empty and missing texts are kept.

        Args:
            texts: The texts; None or "" is a text without units.
            encoder: Encodes the units.
            ids: One per text. Default: "0", "1", …
            centre_on: Row numbers or ids of the texts whose mean is subtracted; give the training texts, so that
                held-out texts influence nothing. Default: all texts.
            splitter: Splits the texts. Default: `Splitter()`.
            dtype: Of the table.
            progress: Whether to show a progress bar. Default: for many strings.

        Raises:
            ValueError: The numbers of texts and ids differ, or an id is given twice.
        """
        if isinstance(texts, str):
            raise TypeError("build needs a list of texts, got a single string: give [text]")
        names = tuple(map(str, range(len(texts)))) if ids is None else tuple(map(text_id, ids))
        if len(names) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(names)} ids: give one id per text")
        splitter = splitter or Splitter()
        rows: dict[str, int] = {}
        lists: dict[str, list[list[int]]] = {granularity: [] for granularity in GRANULARITIES}
        unread = 0
        for text in texts:
            units = splitter(text)
            unread += units.unread > 0
            for granularity, found in lists.items():
                found.append([rows.setdefault(unit, len(rows)) for unit in units.texts(granularity)])
        before = encoder.stats.split
        table = encoder.encode(list(rows), progress=progress).to(dtype)
        store = cls(
            ids=names,
            table=table,
            vocabulary=tuple(rows),
            lists={granularity: RaggedRows.from_lists(found) for granularity, found in lists.items()},
            means={granularity: torch.zeros(encoder.dim) for granularity in lists},
            fingerprint=f"{encoder.fingerprint}|{splitter.fingerprint}",
            split_units=encoder.stats.split - before,
            unread=unread,
        )
        return store.centred_on(range(len(names)) if centre_on is None else centre_on)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Width d of the embeddings."""
        return self.table.shape[1]

    def rows(self, texts: Rows) -> Tensor:
        """Row numbers of texts given by id or row number, int64 b.

        A tensor or a range holds row numbers. Raises ValueError for a number in a list that is also the id of another
        text, and KeyError or IndexError for texts that are not in the store.
        """
        if isinstance(texts, (Tensor, range)):
            rows = torch.as_tensor(texts if isinstance(texts, Tensor) else [*texts])
        else:
            rows = torch.tensor(self._found([*texts]), dtype=torch.long)
        rows = rows.to(self.table.device, torch.long)
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(self)):
            raise IndexError(
                f"rows {int(rows.min())} to {int(rows.max())} were asked for, of a store of {len(self)} texts"
            )
        return rows

    def _found(self, texts: Sequence[int | str]) -> list[int]:
        found = [self._row.get(text_id(text)) if isinstance(text, str) else int(text) for text in texts]
        missing = [text for text, row in zip(texts, found, strict=True) if row is None]
        if missing:
            raise KeyError(f"the store has no text for {missing[0]!r} ({len(missing)} of {len(texts)} ids missing)")
        numbers = [int(text) for text in texts if not isinstance(text, str)]
        refuse_ambiguous(
            (number, self._row.get(str(number)), self.ids[number] if 0 <= number < len(self) else None)
            for number in numbers
        )
        return cast(list[int], found)

    def batch(
        self,
        texts: Rows | None = None,
        device: torch.device | str | None = None,
        *,
        rows: Sequence[int] | Tensor | None = None,
        centred: bool = True,
    ) -> dict[str, Units]:
        """Padded units of some texts: granularity → b m d float32, zero where masked.

        Give `texts`, ids as strings or a tensor of row numbers, or `rows`, row numbers only. If `centred`, the store's
        mean of that granularity is subtracted, and the units are L2-normalised.
        """
        chosen = self.rows(texts_or_rows(texts, rows))
        batch = {}
        for granularity, ragged in self.lists.items():
            units = padded_units(self.table, *ragged.pad(chosen), self.means[granularity] if centred else None)
            batch[granularity] = units if device is None else units.to(device)
        return batch

    def units(self, row: int | str, granularity: str) -> list[str]:
        """The strings behind one text's units, in the order `batch` gives them."""
        ids, mask = self._ragged(granularity).pad(self.rows(cast(Rows, [row])))
        return [self.vocabulary[i] for i in ids[mask].tolist()]

    def counts(self) -> dict[str, int]:
        """How many texts, without units, with unread letters; units per granularity, distinct, encoded in pieces."""
        lengths = torch.stack([ragged.offsets.diff() for ragged in self.lists.values()])
        counts = {"texts": len(self), "without_text": int((lengths.sum(0) == 0).sum())}
        counts |= {granularity: len(ragged.ids) for granularity, ragged in self.lists.items()}
        return counts | {"distinct": len(self.vocabulary), "in_pieces": self.split_units, "unread": self.unread}

    def mean(self, granularity: str) -> Tensor:
        """The mean that `batch` subtracts, d float32: over all units of the texts that it was fitted on."""
        self._ragged(granularity)
        return self.means[granularity]

    def unit_frequency(self, granularity: str = "word") -> dict[str, int]:
        """The number of texts that hold each unit, most frequent first."""
        ids = self._ragged(granularity).ids
        counts = torch.bincount(ids, minlength=len(self.vocabulary))
        order = counts.argsort(descending=True, stable=True).tolist()
        numbers = counts.tolist()
        return {self.vocabulary[i]: numbers[i] for i in order if numbers[i]}

    def centred_on(self, rows: Rows) -> TextStore:
        """The same units, centred on the mean of some texts only."""
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
        """The same units, centred on another store's means; held-out texts take those of the training store."""
        if other.dim != self.dim or other.fingerprint != self.fingerprint:
            raise ValueError(
                f"the stores have different encoders, {self.fingerprint!r} and {other.fingerprint!r}: "
                "build both with one encoder"
            )
        return replace(self, means={name: mean.to(self.table.device) for name, mean in other.means.items()})

    def subset(self, rows: Rows) -> TextStore:
        """Some texts, in the order given, on the same table and with the same means."""
        rows = self.rows(rows)
        names = tuple(self.ids[row] for row in rows.tolist())
        return replace(self, ids=names, lists={name: ragged.subset(rows) for name, ragged in self.lists.items()})

    def to(self, device: torch.device | str) -> TextStore:
        """The store with its tensors on another device, on which `batch` then gathers."""
        lists = {name: RaggedRows(r.ids.to(device), r.offsets.to(device)) for name, r in self.lists.items()}
        means = {name: mean.to(device) for name, mean in self.means.items()}
        return replace(self, table=self.table.to(device), lists=lists, means=means)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically."""
        write_shard(path, self.shard())

    def shard(self, **metadata: Any) -> Shard:
        """The content of the file that holds this store; `metadata` is stored too."""
        metadata |= {"in_pieces": self.split_units, "unread": self.unread}
        return Shard(self.ids, self.table, self.vocabulary, self.lists, self.means, self.fingerprint, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TextStore:
        """Read a file that `save` wrote, or one shard of a prepared store; the table is memory-mapped."""
        shard = read_shard(path)
        return cls(
            ids=tuple(shard.ids),
            table=shard.table,
            vocabulary=tuple(shard.vocabulary),
            lists={name: RaggedRows(ragged.ids.long(), ragged.offsets.long()) for name, ragged in shard.lists.items()},
            means=shard.means,
            fingerprint=shard.fingerprint,
            split_units=shard.metadata["in_pieces"],
            unread=shard.metadata.get("unread", 0),  # stores of units-1 did not count them
        )

    def _ragged(self, granularity: str) -> RaggedRows:
        if granularity not in self.lists:
            raise KeyError(f"there is no granularity {granularity!r}: give one of {', '.join(self.lists)}")
        return self.lists[granularity]
