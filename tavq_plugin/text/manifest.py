"""The folder of a text store: its manifest, its shards by number, and what is wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tavq_plugin.io.atomic import save_text, whole_file
from tavq_plugin.text import shard_file as shards
from tavq_plugin.text.shard_file import FORMAT

NAME = "manifest.json"
WHITENING = "whitening.safetensors"  # of a whitened store: the numbers that made its units


@dataclass(frozen=True)
class Manifest:
    """What all shards of a folder share; `shards` and `texts` are None until the last one is whole."""

    fingerprint: str  # of encoder and splitter, as in each shard
    shards: int | None = None
    texts: int | None = None
    format: int = FORMAT

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """ValueError where the folder's manifest is of another format, FileNotFoundError where there is none."""
        file = Path(folder) / NAME
        if not file.is_file():
            raise FileNotFoundError(f"no text store in {folder} ({NAME} is missing): make one with tavq prepare")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            found = cls(**content)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file} is no manifest of a text store ({error}): delete it and prepare again") from error
        if found.format != FORMAT:
            raise ValueError(f"{file} has format {found.format}, this version reads {FORMAT}: prepare the store again")
        return found

    def write(self, folder: str | Path) -> None:
        """Whole or not at all."""
        save_text(Path(folder) / NAME, json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")

    def begin(self, folder: str | Path) -> Manifest:
        """Found or refresh a store.

        ValueError where the folder holds units of another encoder or splitter, FileExistsError where it holds files
        of a shard's name and no manifest.
        """
        try:
            found = Manifest.read(folder)
        except FileNotFoundError:
            if there := shard_paths(folder):
                raise FileExistsError(
                    f"{there[0]} is in the way: {folder} has no {NAME}, so it is no store of ours; give another --out, "
                    "or move it"
                ) from None
            self.write(folder)
            return self
        self.same(found.fingerprint, folder)
        return found

    def same(self, fingerprint: str, place: str | Path) -> None:
        """Refuse to mix; ValueError with both fingerprints."""
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"{place} was made with {fingerprint!r}, not {self.fingerprint!r}: units of different encoders, "
                "splitters or captions do not mix; give another folder or the same settings"
            )


def shard_path(folder: str | Path, number: int) -> Path:
    """Where a shard lies, whole or not yet.

    >>> shard_path("store", 7).name
    'shard-00007.safetensors'
    """
    return Path(folder) / f"shard-{number:05d}.safetensors"


def shard_paths(folder: str | Path) -> list[Path]:
    """The shards that are there, by number."""
    return sorted(Path(folder).glob("shard-[0-9]*.safetensors"), key=lambda path: int(path.stem.split("-")[1]))


class Fault(NamedTuple):
    """Something wrong with a store."""

    path: Path
    reason: str


def verify(folder: str | Path) -> Iterator[Fault]:
    """Read everything and name each shard that is missing, truncated, changed, of other units, or repeats an id."""
    manifest = Manifest.read(folder)
    paths = shard_paths(folder)
    if manifest.shards is None:
        yield Fault(Path(folder) / NAME, "the store is not finished")
    else:
        expected = {shard_path(folder, number) for number in range(manifest.shards)}
        yield from (Fault(path, "missing") for path in sorted(expected.difference(paths)))
        yield from (Fault(path, "not in the manifest") for path in sorted(set(paths) - expected))
    seen = np.empty(0, dtype=np.uint64)
    for path in paths:
        try:
            shard = shards.read(path)
        except (ValueError, KeyError) as error:
            yield Fault(path, f"truncated or no shard: {error}")
            continue
        if shard.fingerprint != manifest.fingerprint:
            yield Fault(path, f"of other units: {shard.fingerprint!r}, the manifest says {manifest.fingerprint!r}")
        elif not shards.intact(path):
            yield Fault(path, "its content has changed since it was written")
        elif (count := int(np.isin(shard.hashes, seen).sum())) > 0:
            yield Fault(path, f"{count} of its ids stand in an earlier shard already")
        else:
            seen = np.concatenate([seen, shard.hashes])


def finished(folder: str | Path, like: Manifest) -> list[Path]:
    """The shards of a store, all of them; ValueError where it is not finished or not `like` the other."""
    manifest = Manifest.read(folder)
    like.same(manifest.fingerprint, folder)
    if manifest.shards is None:
        raise ValueError(f"{folder} is not finished: run its tavq prepare again")
    return [shard_path(folder, number) for number in range(manifest.shards)]


def append(folder: str | Path, others: Sequence[str | Path]) -> Manifest:
    """Add the shards of other finished stores; nothing is encoded again.

    Raises ValueError where fingerprints differ or an id would stand twice; then the store stays as it was.
    """
    manifest = Manifest.read(folder)
    added = [path for other in others for path in finished(other, manifest)]
    _no_id_twice([*finished(folder, manifest), *added])
    number = manifest.shards or 0
    for path in added:
        _copy(path, shard_path(folder, number))
        number += 1
    texts = (manifest.texts or 0) + sum(len(shards.read(path).ids) for path in added)
    merged = replace(manifest, shards=number, texts=texts)
    merged.write(folder)
    return merged


def merge(stores: Sequence[str | Path], out: str | Path) -> Manifest:
    """One new store of the shards of several, in the order given; see `append`."""
    if not stores:
        raise ValueError("merge needs at least one store")
    out = Path(out)
    if (out / NAME).exists() or shard_paths(out):
        raise FileExistsError(f"{out} holds a store already: give a new folder, or append to it")
    first = Manifest.read(stores[0])
    _no_id_twice([path for store in stores for path in finished(store, first)])
    replace(first, shards=0, texts=0).write(out)
    if (Path(stores[0]) / WHITENING).exists():
        _copy(Path(stores[0]) / WHITENING, out / WHITENING)
    return append(out, stores)


def _no_id_twice(paths: Iterable[Path]) -> None:
    seen = np.empty(0, dtype=np.uint64)
    for path in paths:
        shard = shards.read(path)
        double = np.flatnonzero(np.isin(shard.hashes, seen))
        if len(double):
            raise ValueError(f"id {shard.ids[int(double[0])]!r} of {path} stands in another shard: keep one of them")
        seen = np.concatenate([seen, shard.hashes])


def _copy(source: Path, target: Path) -> None:
    with whole_file(target) as partial:
        shutil.copyfile(source, partial)
