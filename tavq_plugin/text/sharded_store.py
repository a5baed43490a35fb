"""A text store of many memory-mapped shards: random access to any number of texts, without loading them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from tavq_plugin.text.manifest import Manifest, finished_shard_paths
from tavq_plugin.text.ragged import RaggedRows, centre, opaque_rows
from tavq_plugin.text.shard_file import Shard, id_hashes, read_shard
from tavq_plugin.text.store import Rows, TextStore, texts_or_rows
from tavq_plugin.text.text_id import refuse_ambiguous, text_id
from tavq_plugin.types import GRANULARITIES, Units

CENTRED_AT_ONCE = 16  # texts; few, so that their rows stay in the processor's cache
TextPlaces = list[tuple[int, int, int]]  # per text: number of its shard, start of its list in the shard, length


class ShardedStore:
    """The units of n texts in shards; `batch` gives them padded and centred on the corpus mean, as `TextStore` does.

    Workers of a DataLoader send only ids or row numbers (`collate`). The training process gathers the half-precision
    rows, moves them to its device, and centres them on it. If the store fits on the device,
    `store.in_memory().to("cuda")` is faster.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        rows: np.ndarray | None = None,
        means: Mapping | None = None,
        folder: Path | None = None,
    ) -> None:
        self._shards, self._folder = list(shards), folder
        self._starts = np.cumsum([0, *(len(shard.ids) for shard in shards)])
        self._chosen = np.arange(self._starts[-1]) if rows is None else rows  # each text's row, counted over all shards
        hashes = np.concatenate([shard.hashes for shard in shards] or [np.empty(0, np.uint64)])[self._chosen]
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        self._tables = [opaque_rows(shard.table) for shard in shards]
        self._ids = {name: [shard.lists[name].ids.numpy() for shard in shards] for name in GRANULARITIES}
        self._begins, self._lengths = {}, {}  # granularity → of each text's list
        for name in GRANULARITIES:
            offsets = [shard.lists[name].offsets.numpy() for shard in shards] or [np.zeros(1, np.int64)]
            self._begins[name] = np.concatenate([ends[:-1] for ends in offsets])
            self._lengths[name] = np.concatenate([np.diff(ends) for ends in offsets])
        self.fingerprint = shards[0].fingerprint if shards else ""
        self.means = dict(means) if means is not None else self._means()

    @classmethod
    def open(
        cls, folder: str | Path, rows: np.ndarray | None = None, means: Mapping[str, Tensor] | None = None
    ) -> ShardedStore:
        """Map a finished store into memory; `rows` chooses texts by number.

        Raises ValueError if the store is unfinished, or a shard is truncated or has another fingerprint, and
        FileNotFoundError if a shard or the manifest is missing.
        """
        manifest = Manifest.read(folder)
        paths = finished_shard_paths(folder, manifest)
        shards = [read_shard(path) for path in paths]
        for path, shard in zip(paths, shards, strict=True):
            manifest.require_fingerprint(shard.fingerprint, path)
        return cls(shards, rows, means, Path(folder).resolve())

    def __reduce__(self) -> Any:
        """Pickle the folder's path, not the mapped memory; the other process opens the folder again."""
        return (ShardedStore.open, (self._folder, self._chosen, self.means)) if self._folder else super().__reduce__()

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def dim(self) -> int:
        """Width d of the embeddings."""
        return self._shards[0].table.shape[1] if self._shards else 0

    @property
    def ids(self) -> Iterator[str]:
        """The texts' ids, in order."""
        return (self._shards[part].ids[row] for part, row in map(self._place, range(len(self))))

    def rows(self, texts: Rows) -> Tensor:
        """Row numbers of texts given by id or row number, int64 b.

        A tensor or a range holds row numbers. Raises ValueError for a number in a list that is also the id of another
        text, and KeyError or IndexError for texts that are not in the store.
        """
        if isinstance(texts, (Tensor, range)):
            rows = torch.as_tensor(texts if isinstance(texts, Tensor) else [*texts])
        else:
            rows = torch.from_numpy(self._found([*texts]))
        rows = rows.cpu().long()
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(self)):
            raise IndexError(
                f"rows {int(rows.min())} to {int(rows.max())} were asked for, of a store of {len(self)} texts"
            )
        return rows

    def batch(
        self,
        texts: Rows | None = None,
        device: torch.device | str | None = None,
        *,
        rows: Sequence[int] | Tensor | None = None,
        centred: bool = True,
    ) -> dict[str, Units]:
        """Padded units of some texts: granularity → b m d, zero where masked.

        Give `texts`, ids as strings or a tensor of row numbers, or `rows`, row numbers only. If `centred`, the store's
        mean is subtracted, and the units are L2-normalised, float32; else they are as stored.
        """
        places = self._chosen[self.rows(texts_or_rows(texts, rows)).numpy()]
        parts = (np.searchsorted(self._starts, places, side="right") - 1).tolist()
        device = torch.device(device or "cpu")
        gather = self._padded if device.type == "cpu" else partial(self._padded_on_device, device)
        batch = {}
        for name in GRANULARITIES:
            begins, lengths = self._begins[name][places], self._lengths[name][places]
            mask = torch.from_numpy(np.arange(max(1, lengths.max(initial=0))) < lengths[:, None])
            own = list(zip(parts, begins.tolist(), lengths.tolist(), strict=True))
            batch[name] = gather(name, own, mask, self.means[name] if centred else None)
        return batch

    def collate(self, pairs: Sequence[tuple[Tensor, int | str]]) -> tuple[Tensor, Tensor]:
        """(image, id or row number) pairs → images b c h w and row numbers b; the `collate_fn` of a DataLoader."""
        images, rows = zip(*pairs, strict=True)
        return torch.stack(images), self.rows(rows)

    def units(self, row: int | str, granularity: str) -> list[str]:
        """The strings behind one text's units, in the order `batch` gives them."""
        if granularity not in GRANULARITIES:
            raise KeyError(f"there is no granularity {granularity!r}: give one of {', '.join(GRANULARITIES)}")
        part, local = self._place(int(self.rows(cast(Rows, [row]))[0]))
        ids, mask = self._shards[part].lists[granularity].pad(torch.tensor([local]))
        return [self._shards[part].vocabulary[i] for i in ids[mask].tolist()]

    def mean(self, granularity: str) -> Tensor:
        """The mean that `batch` subtracts, over all units of the whole store; d float32."""
        return self.means[granularity]

    def with_mean_of(self, other: ShardedStore | TextStore) -> ShardedStore:
        """The same units, centred on another store's means; held-out texts take those of the training store."""
        if other.fingerprint != self.fingerprint:
            raise ValueError(
                f"the stores have different encoders, {self.fingerprint!r} and {other.fingerprint!r}: "
                "build both with one encoder"
            )
        means = {name: other.mean(name).cpu() for name in GRANULARITIES}
        return ShardedStore(self._shards, self._chosen, means, self._folder)

    def subset(self, rows: Rows) -> ShardedStore:
        """Some texts, in the order given, on the same files and with the same means."""
        return ShardedStore(self._shards, self._chosen[self.rows(rows).numpy()], self.means, self._folder)

    def in_memory(self) -> TextStore:
        """A copy with one table in memory, which holds each used unit once."""
        vocabulary: dict[str, int] = {}
        vectors: list[Tensor] = []
        lists: dict[str, list[list[int]]] = {name: [[] for _ in range(len(self))] for name in GRANULARITIES}
        for part, at, local in self._by_part():
            for name in GRANULARITIES:
                ids, mask = part.lists[name].pad(local)
                used = ids[mask].unique().tolist()
                before = len(vocabulary)
                renumbered = {i: vocabulary.setdefault(part.vocabulary[i], len(vocabulary)) for i in used}
                fresh = [i for i, place in renumbered.items() if place >= before]
                vectors.append(part.table[fresh])
                for row, padded, length in zip(at.tolist(), ids.tolist(), mask.sum(1).tolist(), strict=True):
                    lists[name][row] = [renumbered[i] for i in padded[:length]]
        return TextStore(
            ids=tuple(self.ids),
            table=torch.cat(vectors or [torch.empty(0, self.dim)]),
            vocabulary=tuple(vocabulary),
            lists={name: RaggedRows.from_lists(found) for name, found in lists.items()},
            means=self.means,
            fingerprint=self.fingerprint,
            split_units=sum(part.metadata["in_pieces"] for part in self._shards),
            unread=sum(part.metadata.get("unread", 0) for part in self._shards),
        )

    def counts(self) -> dict[str, int]:
        """How many texts, without units, with unread letters; units per granularity, shards, encoded in pieces."""
        totals = {"texts": len(self), "without_text": 0, **dict.fromkeys(GRANULARITIES, 0), "shards": len(self._shards)}
        totals["in_pieces"] = sum(part.metadata["in_pieces"] for part in self._shards)
        totals["unread"] = sum(part.metadata.get("unread", 0) for part in self._shards)
        for part, _, local in self._by_part():
            lengths = {name: part.lists[name].offsets.diff()[local] for name in GRANULARITIES}
            totals["without_text"] += int((torch.stack(list(lengths.values())).sum(0) == 0).sum())
            for name, length in lengths.items():
                totals[name] += int(length.sum())
        return totals

    def _by_part(self) -> Iterator[tuple[Shard, np.ndarray, Tensor]]:
        """Each shard, the row numbers in this store of its texts, and their rows in the shard."""
        part_of = np.searchsorted(self._starts, self._chosen, side="right") - 1
        for part in range(len(self._shards)):
            at = np.flatnonzero(part_of == part)
            yield self._shards[part], at, torch.from_numpy(self._chosen[at] - self._starts[part])

    def _padded(self, name: str, texts: TextPlaces, mask: Tensor, mean: Tensor | None) -> Units:
        """Padded units on the CPU; a few texts at a time are copied, then centred while they are in the cache."""
        (b, m), dtype = mask.shape, self._shards[0].table.dtype
        padded = torch.empty(b, m, self.dim, dtype=dtype if mean is None else torch.float32)
        some = padded if mean is None else torch.empty(CENTRED_AT_ONCE, m, self.dim, dtype=dtype)
        for first in range(0, b, max(1, len(some))):
            group = slice(first, first + len(some))
            self._fill(some.flatten(0, 1), name, texts[group], m)
            if mean is not None:
                centre(padded[group].copy_(some[: len(texts[group])]), mean, mask[group])
        return Units(padded, mask)

    def _padded_on_device(
        self, device: torch.device | str, name: str, texts: TextPlaces, mask: Tensor, mean: Tensor | None
    ) -> Units:
        """Padded units on another device; rows are moved as stored, then centred and padded on the device."""
        vectors = torch.empty(sum(length for *_, length in texts), self.dim, dtype=self._shards[0].table.dtype)
        self._fill(vectors, name, texts)
        vectors, mask = vectors.to(device), mask.to(device)
        if mean is not None:
            vectors = centre(vectors.float(), mean.to(device))
        padded = torch.zeros(*mask.shape, self.dim, dtype=vectors.dtype, device=device)
        padded[mask] = vectors
        return Units(padded, mask)

    def _fill(self, out: Tensor, name: str, texts: TextPlaces, padded_to: int = 0) -> None:
        """Copy the rows of some texts into `out`, one text after the other, each with zeros up to `padded_to` rows."""
        rows, numbers, at = opaque_rows(out), out.numpy(), 0
        for part, begin, length in texts:
            ids = self._ids[name][part][begin : begin + length]
            if length:
                self._tables[part].take(ids, out=rows[at : at + length], mode="clip")
            numbers[at + length : at + padded_to] = 0
            at += max(length, padded_to)

    def _found(self, texts: Sequence[int | str]) -> np.ndarray:
        """Row numbers of ids and row numbers; raises KeyError for an id that no text has."""
        strings = [i for i, text in enumerate(texts) if isinstance(text, str)]
        numbers = [i for i, text in enumerate(texts) if not isinstance(text, str)]
        found = np.array([0 if isinstance(text, str) else int(text) for text in texts], dtype=np.int64)
        names = [cast(str, texts[i]) for i in strings]
        at = self._find(names)
        if (at < 0).any():  # a store of an earlier release may hold ids in another form
            at = np.where(at < 0, self._find([text_id(name) for name in names]), at)
        if missing := [name for name, row in zip(names, at, strict=True) if row < 0]:
            raise KeyError(f"the store has no text for {missing[0]!r} ({len(missing)} of {len(texts)} ids missing)")
        found[strings] = at
        as_ids = self._find([str(found[i]) for i in numbers])
        refuse_ambiguous(
            (int(found[i]), None if row < 0 else int(row), self._id(int(found[i])))
            for i, row in zip(numbers, as_ids, strict=True)
        )
        return found

    def _find(self, names: Sequence[str]) -> np.ndarray:
        """Row numbers of ids; -1 for an id that no text has."""
        wanted = id_hashes(names)
        at = np.searchsorted(self._hashes, wanted)
        found = np.full(len(names), -1, dtype=np.int64)
        for i, name in enumerate(names):
            place = int(at[i])
            while place < len(self) and self._hashes[place] == wanted[i]:
                row = int(self._order[place])
                if self._id(row) == name:
                    found[i] = row
                    break
                place += 1
        return found

    def _id(self, row: int) -> str | None:
        """The id of a row; None if there is no such row."""
        if not 0 <= row < len(self):
            return None
        part, local = self._place(row)
        return self._shards[part].ids[local]

    def _place(self, row: int) -> tuple[int, int]:
        """The number of a text's shard, and its row in the shard."""
        part = int(np.searchsorted(self._starts, self._chosen[row], side="right")) - 1
        return part, int(self._chosen[row] - self._starts[part])

    def _means(self) -> dict[str, Tensor]:
        """The means of the shards, weighted by their numbers of units."""
        means = {}
        for name in GRANULARITIES:
            numbers = [len(part.lists[name].ids) for part in self._shards]
            total = torch.zeros(self.dim, dtype=torch.float64)
            for number, part in zip(numbers, self._shards, strict=True):
                total += number * part.means[name].double()
            means[name] = (total / max(1, sum(numbers))).float()
        return means
