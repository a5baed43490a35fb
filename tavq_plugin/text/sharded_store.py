"""A text store of many shards, mapped into memory: random access to any number of texts without loading them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tavq_plugin.text import shard_file as shards
from tavq_plugin.text.manifest import Manifest, shard_path
from tavq_plugin.text.ragged import Ragged, centre, records
from tavq_plugin.text.shard_file import Shard
from tavq_plugin.text.store import Rows, TextStore
from tavq_plugin.types import GRANULARITIES, Units

CENTRED_AT_ONCE = 16  # texts, whose rows then still lie in the processor's cache
Texts = list[tuple[int, int, int]]  # of each text its shard, where its list begins there, and its length


class ShardedStore:
    """The units of n texts in shards; `batch(ids)` gives them padded, centred on the corpus mean, as `TextStore` does.

    Workers of a DataLoader need only pass on ids or row numbers (`collate`): the process that trains gathers,
    moves the padded half-precision rows to its device and centres there. A store that fits the device is faster
    whole: `store.in_memory().to("cuda")`.
    """

    def __init__(
        self,
        parts: Sequence[Shard],
        rows: np.ndarray | None = None,
        means: Mapping | None = None,
        folder: Path | None = None,
    ) -> None:
        self._parts, self._folder = list(parts), folder
        self._starts = np.cumsum([0, *(len(part.ids) for part in parts)])
        self._chosen = np.arange(self._starts[-1]) if rows is None else rows  # of each text, its place in the shards
        hashes = np.concatenate([part.hashes for part in parts] or [np.empty(0, np.uint64)])[self._chosen]
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        self._tables = [records(part.table) for part in parts]
        self._ids = {name: [part.lists[name].ids.numpy() for part in parts] for name in GRANULARITIES}
        offsets = {name: [part.lists[name].offsets.numpy() for part in parts] for name in GRANULARITIES}
        self._begins = {name: np.concatenate([o[:-1] for o in its] or [[]]) for name, its in offsets.items()}
        self._lengths = {name: np.concatenate([np.diff(o) for o in its] or [[]]) for name, its in offsets.items()}
        self.fingerprint = parts[0].fingerprint if parts else ""
        self.means = dict(means) if means is not None else self._means()

    @classmethod
    def open(
        cls, folder: str | Path, rows: np.ndarray | None = None, means: Mapping[str, Tensor] | None = None
    ) -> ShardedStore:
        """Map a finished store; `rows` chooses texts by number.

        ValueError names what is unfinished, missing, truncated or of other units.
        """
        manifest = Manifest.read(folder)
        if manifest.shards is None:
            raise ValueError(f"{folder} is not finished: run its tavq prepare again, it does only what is missing")
        parts = [shards.read(shard_path(folder, number)) for number in range(manifest.shards)]
        for number, part in enumerate(parts):
            manifest.same(part.fingerprint, shard_path(folder, number))
        return cls(parts, rows, means, Path(folder).resolve())

    def __reduce__(self) -> Any:
        """Another process opens the folder anew: what is mapped is not copied."""
        return (ShardedStore.open, (self._folder, self._chosen, self.means)) if self._folder else super().__reduce__()

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def dim(self) -> int:
        """Width d of the embeddings."""
        return self._parts[0].table.shape[1] if self._parts else 0

    @property
    def ids(self) -> Iterator[str]:
        """The texts' ids, in order."""
        return (self._parts[part].ids[row] for part, row in map(self._place, range(len(self))))

    def rows(self, rows: Rows) -> Tensor:
        """Row numbers of rows or ids, int64 b; KeyError or IndexError for what the store does not hold."""
        if not isinstance(rows, Tensor):
            strings = [(i, row) for i, row in enumerate(rows) if isinstance(row, str)]
            numbers = np.array([0 if isinstance(row, str) else int(row) for row in rows], dtype=np.int64)
            if strings:
                places, names = zip(*strings, strict=True)
                numbers[list(places)] = self._find(names)
            rows = torch.from_numpy(numbers)
        rows = rows.cpu().long()
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(self)):
            raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} asked of a store of {len(self)} texts")
        return rows

    def batch(self, rows: Rows, device: torch.device | str | None = None, *, centred: bool = True) -> dict[str, Units]:
        """Padded units of some texts: granularity → b m d, zero where masked.

        `centred`: less the store's mean, then L2-normalised, float32; else as they lie in the store, float16.
        """
        places = self._chosen[self.rows(rows).numpy()]
        parts = (np.searchsorted(self._starts, places, side="right") - 1).tolist()
        gather = self._padded if torch.device(device or "cpu").type == "cpu" else partial(self._sent, device)
        batch = {}
        for name in GRANULARITIES:
            begins, lengths = self._begins[name][places], self._lengths[name][places]
            mask = torch.from_numpy(np.arange(max(1, lengths.max(initial=0))) < lengths[:, None])
            texts = list(zip(parts, begins.tolist(), lengths.tolist(), strict=True))
            batch[name] = gather(name, texts, mask, self.means[name] if centred else None)
        return batch

    def collate(self, pairs: Sequence[tuple[Tensor, int | str]]) -> tuple[Tensor, Tensor]:
        """(image, id or row) pairs of a dataset → images b c h w and row numbers b: for a DataLoader, in any worker."""
        images, rows = zip(*pairs, strict=True)
        return torch.stack(images), self.rows(rows)

    def units(self, row: int | str, granularity: str) -> list[str]:
        """The strings behind one text's units, in the order `batch` gives them."""
        if granularity not in GRANULARITIES:
            raise KeyError(f"no granularity {granularity!r}: one of {', '.join(GRANULARITIES)}")
        part, local = self._place(int(self.rows([row])[0]))
        ids, mask = self._parts[part].lists[granularity].take(torch.tensor([local]))
        return [self._parts[part].vocabulary[i] for i in ids[mask].tolist()]

    def mean(self, granularity: str) -> Tensor:
        """The mean that `batch` centres on: over all units of the whole store; d float32."""
        return self.means[granularity]

    def with_mean_of(self, other: ShardedStore | TextStore) -> ShardedStore:
        """The same units, centred on another store's means: for held-out texts, the training store's."""
        if other.fingerprint != self.fingerprint:
            raise ValueError(f"stores of different encoders: {self.fingerprint!r} and {other.fingerprint!r}")
        means = {name: other.mean(name).cpu() for name in GRANULARITIES}
        return ShardedStore(self._parts, self._chosen, means, self._folder)

    def subset(self, rows: Rows) -> ShardedStore:
        """Some texts, in the order given, on the same files and with the same means."""
        return ShardedStore(self._parts, self._chosen[self.rows(rows).numpy()], self.means, self._folder)

    def in_memory(self) -> TextStore:
        """A copy whose table is one tensor: distinct units of all shards once, only those that are used."""
        vocabulary: dict[str, int] = {}
        vectors: list[Tensor] = []
        lists: dict[str, list[list[int]]] = {name: [[] for _ in range(len(self))] for name in GRANULARITIES}
        for part, at, local in self._by_part():
            for name in GRANULARITIES:
                ids, mask = part.lists[name].take(local)
                used = ids[mask].unique().tolist()
                before = len(vocabulary)
                renumbered = {i: vocabulary.setdefault(part.vocabulary[i], len(vocabulary)) for i in used}
                fresh = [i for i, place in renumbered.items() if place >= before]
                vectors.append(part.table[fresh])
                for row, its, here in zip(at.tolist(), ids.tolist(), mask.sum(1).tolist(), strict=True):
                    lists[name][row] = [renumbered[i] for i in its[:here]]
        return TextStore(
            ids=tuple(self.ids),
            table=torch.cat(vectors or [torch.empty(0, self.dim)]),
            vocabulary=tuple(vocabulary),
            lists={name: Ragged.of(found) for name, found in lists.items()},
            means=self.means,
            fingerprint=self.fingerprint,
            split_units=sum(part.about["in_pieces"] for part in self._parts),
        )

    def counts(self) -> dict[str, int]:
        """Texts, texts without any unit, units by granularity, shards, and their strings encoded in pieces."""
        totals = {"texts": len(self), "without_text": 0, **dict.fromkeys(GRANULARITIES, 0), "shards": len(self._parts)}
        totals["in_pieces"] = sum(part.about["in_pieces"] for part in self._parts)
        for part, _, local in self._by_part():
            lengths = {name: part.lists[name].offsets.diff()[local] for name in GRANULARITIES}
            totals["without_text"] += int((sum(lengths.values()) == 0).sum())
            for name, length in lengths.items():
                totals[name] += int(length.sum())
        return totals

    def _by_part(self) -> Iterator[tuple[Shard, np.ndarray, Tensor]]:
        """Each shard with the rows of this store that lie in it, and where."""
        part_of = np.searchsorted(self._starts, self._chosen, side="right") - 1
        for part in range(len(self._parts)):
            at = np.flatnonzero(part_of == part)
            yield self._parts[part], at, torch.from_numpy(self._chosen[at] - self._starts[part])

    def _padded(self, name: str, texts: Texts, mask: Tensor, mean: Tensor | None) -> Units:
        """On the CPU: rows go where they belong at once, then some texts at a time are centred in the cache."""
        (b, m), dtype = mask.shape, self._parts[0].table.dtype
        padded = torch.empty(b, m, self.dim, dtype=dtype if mean is None else torch.float32)
        some = padded if mean is None else torch.empty(CENTRED_AT_ONCE, m, self.dim, dtype=dtype)
        for first in range(0, b, max(1, len(some))):
            group = slice(first, first + len(some))
            self._fill(some.flatten(0, 1), name, texts[group], m)
            if mean is not None:
                centre(padded[group].copy_(some[: len(texts[group])]), mean, mask[group])
        return Units(padded, mask)

    def _sent(self, device: torch.device | str, name: str, texts: Texts, mask: Tensor, mean: Tensor | None) -> Units:
        """On another device: rows go there as stored, without padding, and are padded and centred there."""
        vectors = torch.empty(sum(length for *_, length in texts), self.dim, dtype=self._parts[0].table.dtype)
        self._fill(vectors, name, texts)
        vectors, mask = vectors.to(device), mask.to(device)
        if mean is not None:
            vectors = centre(vectors.float(), mean.to(device))
        padded = torch.zeros(*mask.shape, self.dim, dtype=vectors.dtype, device=device)
        padded[mask] = vectors
        return Units(padded, mask)

    def _fill(self, out: Tensor, name: str, texts: Texts, padded_to: int = 0) -> None:
        """Rows of some texts one after the other, each text with zeros up to a length where one is given."""
        rows, numbers, at = records(out), out.numpy(), 0
        for part, begin, length in texts:
            ids = self._ids[name][part][begin : begin + length]
            if length:
                self._tables[part].take(ids, out=rows[at : at + length], mode="clip")
            numbers[at + length : at + padded_to] = 0
            at += max(length, padded_to)

    def _find(self, names: Sequence[str]) -> np.ndarray:
        wanted = shards.hashed(names)
        at = np.searchsorted(self._hashes, wanted)
        found, missing = np.zeros(len(names), dtype=np.int64), []
        for i, name in enumerate(names):
            place = int(at[i])
            while place < len(self) and self._hashes[place] == wanted[i]:
                row = int(self._order[place])
                part, local = self._place(row)
                if self._parts[part].ids[local] == name:
                    found[i] = row
                    break
                place += 1
            else:
                missing.append(name)
        if missing:
            raise KeyError(f"the store has no text for {missing[0]!r} ({len(missing)} of {len(names)} ids missing)")
        return found

    def _place(self, row: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, self._chosen[row], side="right")) - 1
        return part, int(self._chosen[row] - self._starts[part])

    def _means(self) -> dict[str, Tensor]:
        """From the shards' own, weighted by their numbers of units."""
        means = {}
        for name in GRANULARITIES:
            numbers = [len(part.lists[name].ids) for part in self._parts]
            total = sum((n * part.means[name].double() for n, part in zip(numbers, self._parts, strict=True)), 0.0)
            means[name] = (torch.zeros(self.dim) if not sum(numbers) else total / sum(numbers)).float()
        return means
