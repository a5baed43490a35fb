"""One shard of a text store: a safetensors file of units and ragged lists, whole or not there, mapped when read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from tavq_plugin.io.atomic import save_bytes
from tavq_plugin.io.storable import storable
from tavq_plugin.text.ragged import Ragged
from tavq_plugin.types import GRANULARITIES

FORMAT = 1  # of the files; a reader refuses what it does not know
_META = "tavq"  # one key only: safetensors orders several at random, and shards are compared byte for byte


class Strings(Sequence[str]):
    """Many strings in two flat tensors, read one at a time; what is not looked at is never decoded.

    >>> words = Strings.pack(["red", "", "café"])
    >>> words[2], len(words), list(words)
    ('café', 3, ['red', '', 'café'])
    """

    def __init__(self, data: Tensor, offsets: Tensor) -> None:
        self.data, self.offsets = data, offsets  # uint8; n + 1, int64

    @classmethod
    def pack(cls, strings: Sequence[str]) -> Strings:
        """Encode as UTF-8, one after the other."""
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
    """What one file holds."""

    ids: Sequence[str]  # n, of the texts
    table: Tensor  # u d, one row a distinct unit
    vocabulary: Sequence[str]  # u
    lists: Mapping[str, Ragged]  # by granularity
    means: Mapping[str, Tensor]  # by granularity, d, over all units of its texts
    fingerprint: str  # of encoder and splitter
    about: Mapping[str, Any]  # the rest of its metadata
    hashes: np.ndarray | None = None  # n uint64, of the ids


def hashed(ids: Sequence[str]) -> np.ndarray:
    """64 bits of each id, uint64: what an id is looked up by; equal hashes are compared as strings."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, dtype="<u8")


def write(path: str | os.PathLike[str], shard: Shard) -> None:
    """Write one file, flushed to the disk and then renamed: whole under its name, or not at all.

    The bytes depend on nothing but the content.
    """
    from safetensors.torch import save

    names, vocabulary = Strings.pack(shard.ids), Strings.pack(shard.vocabulary)
    tensors = {
        "units": shard.table.cpu(),
        "images": names.data,
        "images.offsets": names.offsets.to(torch.uint32),
        "images.hash": torch.from_numpy(hashed(shard.ids).copy()),
        "strings": vocabulary.data,
        "strings.offsets": vocabulary.offsets.to(torch.uint32),
    }
    for name, ragged in shard.lists.items():
        tensors[f"{name}.ids"] = ragged.ids.cpu().to(torch.uint32)
        tensors[f"{name}.offsets"] = ragged.offsets.cpu().to(torch.uint32)
        tensors[f"{name}.mean"] = shard.means[name].cpu()
    tensors = storable(tensors)
    meta = {**shard.about, "format": FORMAT, "fingerprint": shard.fingerprint, "content": _digest(tensors)}
    save_bytes(path, save(tensors, {_META: json.dumps(meta, sort_keys=True)}))


def read(path: str | os.PathLike[str]) -> Shard:
    """Map a file into memory; ValueError says what is wrong with one that is truncated or of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            meta = _known(path, file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise FileNotFoundError(f"no shard {path}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or no shard ({error}): delete it and run tavq prepare again") from error
    lists = {
        name: Ragged(tensors[f"{name}.ids"].view(torch.int32), tensors[f"{name}.offsets"].view(torch.int32))
        for name in GRANULARITIES
    }
    return Shard(
        ids=Strings(tensors["images"], tensors["images.offsets"].view(torch.int32)),
        table=tensors["units"],
        vocabulary=Strings(tensors["strings"], tensors["strings.offsets"].view(torch.int32)),
        lists=lists,
        means={name: tensors[f"{name}.mean"] for name in GRANULARITIES},
        fingerprint=meta["fingerprint"],
        about=meta,
        hashes=tensors["images.hash"].numpy(),
    )


def metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What a whole file says of itself, without reading its content; None where it is missing or truncated."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return _known(path, file.metadata())
    except (SafetensorError, OSError, ValueError):
        return None


def intact(path: str | os.PathLike[str]) -> bool:
    """Whether the content is, bit for bit, what was written; reads all of the file."""
    from safetensors.torch import load_file

    meta = metadata(path)
    return meta is not None and _digest(load_file(path)) == meta["content"]


def _known(path: str | os.PathLike[str], raw: Mapping[str, str] | None) -> dict[str, Any]:
    meta = json.loads((raw or {}).get(_META, "{}"))
    if meta.get("format") != FORMAT:
        raise ValueError(f"{path} is no text shard of format {FORMAT} but {meta.get('format')!r}: prepare it again")
    return meta


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
