"""Unit embeddings: a table of distinct strings and ragged lists of its rows, so that training never encodes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tavq_plugin.contract import GRANULARITIES, Units
from tavq_plugin.text.embed import TextEncoder
from tavq_plugin.text.units import Splitter, TextUnits

Rows = Sequence[int] | Sequence[str] | Tensor


@dataclass(frozen=True)
class Ragged:
    """For every text the table rows of its units: text i has ids[offsets[i]:offsets[i + 1]].

    >>> ids, mask = Ragged.of([[3, 1], []]).take(torch.tensor([1, 0]))
    >>> ids.tolist(), mask.tolist()
    ([[0, 0], [3, 1]], [[False, False], [True, True]])
    """

    ids: Tensor  # int64
    offsets: Tensor  # n + 1, int64

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Ragged:
        """From one list of table rows a text."""
        offsets = torch.tensor([0, *map(len, lists)]).cumsum(0)
        return cls(torch.tensor([i for ids in lists for i in ids], dtype=torch.long), offsets)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Padded table rows and their mask, b m; m is at least 1 and padding points at row 0."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        m = max(1, int(lengths.max())) if len(rows) else 1
        steps = torch.arange(m, device=rows.device)
        mask = steps < lengths[:, None]
        if not len(self.ids):
            return torch.zeros_like(mask, dtype=torch.long), mask
        places = (starts[:, None] + steps).clamp(max=len(self.ids) - 1)
        return self.ids[places] * mask, mask

    def subset(self, rows: Tensor) -> Ragged:
        """The lists of some texts."""
        ids, mask = self.take(rows)
        return Ragged(ids[mask], torch.cat([mask.new_zeros(1, dtype=torch.long), mask.sum(1).cumsum(0)]))


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
        from safetensors.torch import save_file

        tensors = {"table": self.table.contiguous()}
        for name, ragged in self.lists.items():
            tensors |= {f"{name}.ids": ragged.ids, f"{name}.offsets": ragged.offsets, f"{name}.mean": self.means[name]}
        for name in ("ids", "vocabulary"):
            content = json.dumps(getattr(self, name)).encode()
            tensors[name] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
                unfinished,
                metadata={"fingerprint": self.fingerprint, "split_units": str(self.split_units)},
            )
            os.replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TextStore:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(os.fspath(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata: dict[str, Any] = file.metadata()
        return cls(
            ids=tuple(json.loads(bytes(tensors["ids"].tolist()))),
            table=tensors["table"],
            vocabulary=tuple(json.loads(bytes(tensors["vocabulary"].tolist()))),
            lists={name: Ragged(tensors[f"{name}.ids"], tensors[f"{name}.offsets"]) for name in GRANULARITIES},
            means={name: tensors[f"{name}.mean"] for name in GRANULARITIES},
            fingerprint=metadata["fingerprint"],
            split_units=int(metadata["split_units"]),
        )

    def _ragged(self, granularity: str) -> Ragged:
        if granularity not in self.lists:
            raise KeyError(f"no granularity {granularity!r}: one of {', '.join(self.lists)}")
        return self.lists[granularity]


def gather(table: Tensor, ids: Tensor, mask: Tensor, mean: Tensor | None) -> Units:
    """Rows of a table as padded units; ids and mask b m -> embeddings b m d float32, centred on `mean` if given.

    A unit that equals the mean (the only one of its corpus) has no direction left and stays as it was.
    """
    if not len(table):
        return Units(torch.zeros(*ids.shape, table.shape[1], device=table.device), mask)
    vectors = table.index_select(0, ids.flatten()).float().unflatten(0, ids.shape)
    if mean is None:
        return Units(vectors * mask[..., None], mask)
    vectors -= mean
    norms = torch.linalg.vector_norm(vectors, dim=-1)
    alone = mask & (norms < 1e-2)
    if alone.any():
        vectors[alone] += mean
        norms = torch.linalg.vector_norm(vectors, dim=-1)
    return Units(vectors.mul_((mask / norms.clamp(min=1e-12))[..., None]), mask)


def _rows(units: TextUnits, granularity: str, vocabulary: dict[str, int]) -> list[int]:
    return [vocabulary.setdefault(text, len(vocabulary)) for text in units.texts(granularity)]
