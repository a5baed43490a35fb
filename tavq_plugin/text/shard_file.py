"""One shard of a text store: a memory-mapped safetensors file of units, and of each text's list of unit rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from tavq_plugin.io.atomic import save_bytes
from tavq_plugin.io.storable import storable
from tavq_plugin.text.ragged import RaggedRows
from tavq_plugin.types import GRANULARITIES

FORMAT = 1  # of the files; readers refuse any other
# One key only: safetensors writes several in random order, and equal shards must have equal bytes.
_METADATA_KEY = "tavq"


class PackedStrings(Sequence[str]):
    """Many strings in two flat tensors; a string is decoded when it is read.

    >>> words = PackedStrings.pack(["red", "", "café"])
    >>> words[2], len(words), list(words)
    ('café', 3, ['red', '', 'café'])
    """

    def __init__(self, data: Tensor, offsets: Tensor) -> None:
        self.data, self.offsets = data, offsets  # uint8; n + 1, int64

    @classmethod
    def pack(cls, strings: Sequence[str]) -> PackedStrings:
        """Pack strings as UTF-8, one after the other."""
        encoded = [string.encode() for string in strings]
        data = torch.frombuffer(bytearray(b"".join(encoded)) or bytearray(1), dtype=torch.uint8)
        offsets = torch.tensor([0, *map(len, encoded)]).cumsum(0)
        return cls(data[: int(offsets[-1])], offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        index %= len(self)
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.data[start:end].numpy().tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        data, offsets = self.data.numpy().tobytes(), self.offsets.tolist()
        return (data[start:end].decode() for start, end in pairwise(offsets))


@dataclass(frozen=True)
class Shard:
    """The content of one file."""

    ids: Sequence[str]  # n, of the texts
    table: Tensor  # u d, one row per distinct unit
    vocabulary: Sequence[str]  # u
    lists: Mapping[str, RaggedRows]  # granularity → the table rows of each text
    means: Mapping[str, Tensor]  # granularity → d, over all units of these texts
    fingerprint: str  # of encoder and splitter
    metadata: Mapping[str, Any]  # the rest, such as "in_pieces" and "records"
    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # n, of the ids; filled by `read_shard`


def id_hashes(ids: Sequence[str]) -> np.ndarray:
    """64-bit hashes of ids, uint64. An id is found by its hash, then compared as a string."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, dtype="<u8")


def id_hash(name: str) -> int:
    """The 64-bit hash of one id."""
    return int(id_hashes([name])[0])


def write_shard(path: str | os.PathLike[str], shard: Shard) -> None:
    """Write one file atomically: it appears under its name only when it is complete.

    The bytes depend on the content alone.
    """
    from safetensors.torch import save

    names, vocabulary = PackedStrings.pack(shard.ids), PackedStrings.pack(shard.vocabulary)
    tensors = {
        "units": shard.table.cpu(),
        "images": names.data,
        "images.offsets": names.offsets.to(torch.uint32),
        "images.hash": torch.from_numpy(id_hashes(shard.ids).copy()),
        "strings": vocabulary.data,
        "strings.offsets": vocabulary.offsets.to(torch.uint32),
    }
    for name, ragged in shard.lists.items():
        tensors[f"{name}.ids"] = ragged.ids.cpu().to(torch.uint32)
        tensors[f"{name}.offsets"] = ragged.offsets.cpu().to(torch.uint32)
        tensors[f"{name}.mean"] = shard.means[name].cpu()
    tensors = storable(tensors)
    meta = {**shard.metadata, "format": FORMAT, "fingerprint": shard.fingerprint, "content": _digest(tensors)}
    save_bytes(path, save(tensors, {_METADATA_KEY: json.dumps(meta, sort_keys=True)}))


def read_shard(path: str | os.PathLike[str]) -> Shard:
    """Map a file into memory.

    Raises FileNotFoundError if it is missing, and ValueError if it is truncated or not a shard.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            meta = _checked_metadata(path, file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no shard {path}: run tavq prepare again") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or not a shard ({error}): delete it and run tavq prepare again"
        ) from error
    lists = {
        name: RaggedRows(tensors[f"{name}.ids"].view(torch.int32), tensors[f"{name}.offsets"].view(torch.int32))
        for name in GRANULARITIES
    }
    return Shard(
        ids=PackedStrings(tensors["images"], tensors["images.offsets"].view(torch.int32)),
        table=tensors["units"],
        vocabulary=PackedStrings(tensors["strings"], tensors["strings.offsets"].view(torch.int32)),
        lists=lists,
        means={name: tensors[f"{name}.mean"] for name in GRANULARITIES},
        fingerprint=meta["fingerprint"],
        metadata=meta,
        hashes=tensors["images.hash"].numpy(),
    )


def shard_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """A shard's metadata, without reading its tensors; None if the file is missing or truncated."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return _checked_metadata(path, file.metadata())
    except (SafetensorError, OSError, ValueError):
        return None


def content_matches_hash(path: str | os.PathLike[str]) -> bool:
    """Whether the tensors are bit for bit those that were written; reads the whole file."""
    from safetensors.torch import load_file

    meta = shard_metadata(path)
    return meta is not None and _digest(load_file(path)) == meta["content"]


def _checked_metadata(path: str | os.PathLike[str], raw: Mapping[str, str] | None) -> dict[str, Any]:
    meta = json.loads((raw or {}).get(_METADATA_KEY, "{}"))
    if meta.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {meta.get('format')!r}, not that of a text shard, {FORMAT}: prepare it again"
        )
    return meta


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
