"""The folder of a text store: its manifest, its numbered shards, and checks of both."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tavq_plugin.io.atomic import read_json, save_json, whole_file
from tavq_plugin.moved import old_names
from tavq_plugin.text.shard_file import FORMAT, content_matches_hash, read_shard

__getattr__ = old_names(__name__)  # names of the last release


MANIFEST_FILE = "manifest.json"
WHITENING_FILE = "whitening.safetensors"  # only in a whitened store


@dataclass(frozen=True)
class Manifest:
    """What all shards of a folder share; `shards` and `texts` are None until the last shard is written."""

    fingerprint: str  # of encoder and splitter, as in each shard
    shards: int | None = None
    texts: int | None = None
    format: int = FORMAT

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """Read a folder's manifest.

        Raises FileNotFoundError if there is none, and ValueError if it has another format.
        """
        file = Path(folder) / MANIFEST_FILE
        if not file.is_file():
            raise FileNotFoundError(f"no text store in {folder}, {MANIFEST_FILE} is missing: run tavq prepare")
        try:
            found = cls(**read_json(file))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{file} is not a manifest of a text store ({error}): delete it and run tavq prepare again"
            ) from error
        if found.format != FORMAT:
            raise ValueError(
                f"{file} has format {found.format}, but this version reads {FORMAT}: prepare the store again"
            )
        return found

    def write(self, folder: str | Path) -> None:
        """Write the manifest atomically."""
        save_json(Path(folder) / MANIFEST_FILE, dict(sorted(asdict(self).items())))

    def write_or_check(self, folder: str | Path) -> Manifest:
        """Return the folder's manifest; write this one if there is none.

        Raises ValueError if the folder holds units of another encoder or splitter, and FileExistsError if it holds
        files named like shards but no manifest.
        """
        try:
            found = Manifest.read(folder)
        except FileNotFoundError:
            if foreign := shard_paths(folder):
                raise FileExistsError(
                    f"{foreign[0]} is in the way: {folder} has no {MANIFEST_FILE}, so it is not a store; "
                    "give another --out, or move the file"
                ) from None
            self.write(folder)
            return self
        self.require_fingerprint(found.fingerprint, folder)
        return found

    def require_fingerprint(self, fingerprint: str, place: str | Path) -> None:
        """Raise ValueError, with both fingerprints, if they differ."""
        if fingerprint != self.fingerprint:
            mend = "give another folder or the same settings"
            if _without_version(fingerprint) == _without_version(self.fingerprint):
                mend = "this release splits texts by other rules, so prepare the texts again in another folder"
            raise ValueError(
                f"{place} was made with {fingerprint!r}, not {self.fingerprint!r}: units of different encoders, "
                f"splitters or captions do not mix; {mend}"
            )


def _without_version(fingerprint: str) -> str:
    """The fingerprint without the version of the splitting rules."""
    return re.sub(r"\|units-\d+:", "|units:", fingerprint)


def shard_path(folder: str | Path, number: int) -> Path:
    """The path of a shard, whether it exists or not.

    >>> shard_path("store", 7).name
    'shard-00007.safetensors'
    """
    return Path(folder) / f"shard-{number:05d}.safetensors"


def shard_paths(folder: str | Path) -> list[Path]:
    """The shards that exist, by number."""
    return sorted(Path(folder).glob("shard-[0-9]*.safetensors"), key=lambda path: int(path.stem.split("-")[1]))


class Fault(NamedTuple):
    """A damaged or misplaced file of a store, and what is wrong with it."""

    path: Path
    reason: str


def find_faults(folder: str | Path) -> Iterator[Fault]:
    """Read a whole store; yield each shard that is missing, truncated, changed, foreign, or repeats an id."""
    manifest = Manifest.read(folder)
    paths = shard_paths(folder)
    if manifest.shards is None:
        yield Fault(Path(folder) / MANIFEST_FILE, "the store is not finished")
    else:
        expected = {shard_path(folder, number) for number in range(manifest.shards)}
        yield from (Fault(path, "missing") for path in sorted(expected.difference(paths)))
        yield from (Fault(path, "not in the manifest") for path in sorted(set(paths) - expected))
    seen = np.empty(0, dtype=np.uint64)
    for path in paths:
        try:
            shard = read_shard(path)
        except (ValueError, KeyError) as error:
            yield Fault(path, f"truncated or not a shard: {error}")
            continue
        if shard.fingerprint != manifest.fingerprint:
            yield Fault(path, f"of other units: it has {shard.fingerprint!r}, the manifest {manifest.fingerprint!r}")
        elif not content_matches_hash(path):
            yield Fault(path, "its content has changed since it was written")
        elif (count := int(np.isin(shard.hashes, seen).sum())) > 0:
            yield Fault(path, f"{count} of its ids are in an earlier shard too")
        else:
            seen = np.concatenate([seen, shard.hashes])


def finished_shard_paths(folder: str | Path, like: Manifest) -> list[Path]:
    """All shards of a store, by number.

    Raises ValueError if the store is not finished, or its fingerprint differs from that of `like`.
    """
    manifest = Manifest.read(folder)
    like.require_fingerprint(manifest.fingerprint, folder)
    if manifest.shards is None:
        raise ValueError(f"{folder} is not finished: run the same tavq prepare again, which makes only what is missing")
    return [shard_path(folder, number) for number in range(manifest.shards)]


def append_stores(folder: str | Path, others: Sequence[str | Path]) -> Manifest:
    """Copy the shards of other finished stores into this one; nothing is encoded again.

    Raises ValueError, before anything is written, if fingerprints differ or an id would appear twice.
    """
    manifest = Manifest.read(folder)
    added = [path for other in others for path in finished_shard_paths(other, manifest)]
    _refuse_repeated_ids([*finished_shard_paths(folder, manifest), *added])
    number = manifest.shards or 0
    for path in added:
        _copy(path, shard_path(folder, number))
        number += 1
    texts = (manifest.texts or 0) + sum(len(read_shard(path).ids) for path in added)
    merged = replace(manifest, shards=number, texts=texts)
    merged.write(folder)
    return merged


def merge_stores(stores: Sequence[str | Path], out: str | Path) -> Manifest:
    """Copy the shards of several stores into a new one, in the order given.

    Raises ValueError like `append_stores`, and FileExistsError if `out` holds a store.
    """
    if not stores:
        raise ValueError("there is nothing to merge: give at least one store")
    out = Path(out)
    if (out / MANIFEST_FILE).exists() or shard_paths(out):
        raise FileExistsError(f"{out} already holds a store: give a new folder, or append to it")
    first = Manifest.read(stores[0])
    _refuse_repeated_ids([path for store in stores for path in finished_shard_paths(store, first)])
    replace(first, shards=0, texts=0).write(out)
    if (Path(stores[0]) / WHITENING_FILE).exists():
        _copy(Path(stores[0]) / WHITENING_FILE, out / WHITENING_FILE)
    return append_stores(out, stores)


def _refuse_repeated_ids(paths: Iterable[Path]) -> None:
    seen = np.empty(0, dtype=np.uint64)
    for path in paths:
        shard = read_shard(path)
        repeated = np.flatnonzero(np.isin(shard.hashes, seen))
        if len(repeated):
            raise ValueError(
                f"id {shard.ids[int(repeated[0])]!r} of {path} is in another shard too: keep one of the two"
            )
        seen = np.concatenate([seen, shard.hashes])


def _copy(source: Path, target: Path) -> None:
    with whole_file(target) as partial:
        shutil.copyfile(source, partial)
