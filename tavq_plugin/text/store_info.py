"""What a finished text store holds, in numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tavq_plugin.text.manifest import Manifest, finished_shard_paths
from tavq_plugin.text.shard_file import read_shard
from tavq_plugin.types import GRANULARITIES


@dataclass(frozen=True)
class StoreInfo:
    """Numbers of a store; nothing of the texts themselves."""

    texts: int
    without_units: int  #: texts that add nothing to the loss
    shards: int
    dim: int  #: width of the embeddings
    stored_units: int  #: different units; each shard stores its own
    units: dict[str, int]  #: granularity → units of all texts
    bytes: int
    fingerprint: str  #: of encoder, splitter and captions
    unread: int = 0  #: texts with letters of a script that the tagger does not know

    def rows(self) -> Iterator[tuple[str, str]]:
        """Names and values, as they are printed."""
        yield "texts", f"{self.texts:,}, of them {self.without_units:,} without a unit"
        if self.unread:
            yield "texts with letters of other scripts", f"{self.unread:,}; these letters are in sentences only"
        for name, number in self.units.items():
            yield f"units of kind {name}", f"{number:,}, {number / max(1, self.texts):.1f} per text"
        yield "embeddings", f"{self.stored_units:,} of width {self.dim}"
        yield "shards", f"{self.shards:,}, {self.bytes / 2**20:,.1f} MiB"
        yield "made by", self.fingerprint


def store_info(folder: str | Path) -> StoreInfo:
    """Count a finished store, shard by shard; raises what `finished_shard_paths` and `read_shard` do."""
    manifest = Manifest.read(folder)
    units = dict.fromkeys(GRANULARITIES, 0)
    texts = without = dim = stored = size = unread = 0
    paths = finished_shard_paths(folder, manifest)
    for path in paths:
        shard = read_shard(path)
        manifest.require_fingerprint(shard.fingerprint, path)
        lengths = {name: shard.lists[name].offsets.diff() for name in GRANULARITIES}
        for name, own in lengths.items():
            units[name] += int(own.sum())
        without += int((torch.stack([*lengths.values()]).sum(0) == 0).sum())
        texts, dim, stored = texts + len(shard.ids), shard.table.shape[1], stored + len(shard.table)
        size += path.stat().st_size
        unread += shard.metadata.get("unread", 0)
    return StoreInfo(texts, without, len(paths), dim, stored, units, size, manifest.fingerprint, unread)
