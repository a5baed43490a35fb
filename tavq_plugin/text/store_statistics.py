"""Statistics of a text store that its shards hold: lengths of texts, frequent units, scripts, and the language."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from tavq_plugin.text.languages import LANGUAGES
from tavq_plugin.text.manifest import Manifest, finished_shard_paths
from tavq_plugin.text.shard_file import Shard, id_hashes, read_shard
from tavq_plugin.types import GRANULARITIES

FREQUENT = 30  # units that are listed of each granularity
_RULES = re.compile(r"(?:^|\|)units-\d+:[^:|]*:[^:|]*(?::([^:|]+))?")  # the splitter's part of a store's fingerprint


@dataclass(frozen=True)
class StoreStatistics:
    """Counts over the texts of a store."""

    units: Mapping[str, np.ndarray]  #: granularity → how many texts have 0, 1, 2, … different units
    characters: np.ndarray  #: how many texts have 0, 1, 2, … characters in their different sentences
    frequent: Mapping[str, Sequence[tuple[str, int]]]  #: granularity → units, and the number of texts that have each
    scripts: Mapping[str, int]  #: script, such as "LATIN" → number of texts whose first letter is of it
    language: str  #: that the splitter was told, such as "en"


def store_statistics(folder: str | Path, *, frequent: int = FREQUENT) -> StoreStatistics:
    """Count a finished store, shard by shard, in memory that grows by 12 bytes per different unit.

    Raises what `finished_shard_paths` and `read_shard` do.
    """
    manifest = Manifest.read(folder)
    units = {name: np.zeros(0, np.int64) for name in GRANULARITIES}
    characters, scripts = np.zeros(0, np.int64), Counter[str]()
    counts = {name: (np.zeros(0, np.uint64), np.zeros(0, np.uint32)) for name in GRANULARITIES}
    for shard in _shards(folder, manifest):
        words = list(shard.vocabulary)
        hashes, lengths = id_hashes(words), np.array([len(word) for word in words] or [0])
        for name in GRANULARITIES:
            own = shard.lists[name].ids.numpy()
            units[name] = _added(units[name], np.bincount(np.diff(shard.lists[name].offsets.numpy())))
            number = np.bincount(own, minlength=len(words))
            used = number.nonzero()[0]
            counts[name] = _merged(*counts[name], hashes[used], number[used].astype(np.uint32))
        sentences = shard.lists["sentence"]
        ends = np.concatenate([[0], np.cumsum(lengths[sentences.ids.numpy()])])
        characters = _added(characters, np.bincount(np.diff(ends[sentences.offsets.numpy()])))
        starts, stops = sentences.offsets[:-1].tolist(), sentences.offsets[1:].tolist()
        first = [words[sentences.ids[start]] for start, stop in zip(starts, stops, strict=True) if start < stop]
        scripts.update(map(_script, first))
    return StoreStatistics(
        units=units,
        characters=characters,
        frequent=_named(folder, manifest, {name: _most(*found, frequent) for name, found in counts.items()}),
        scripts=dict(scripts.most_common()),
        language=splitter_language(manifest.fingerprint),
    )


def _shards(folder: str | Path, manifest: Manifest) -> Iterator[Shard]:
    for path in finished_shard_paths(folder, manifest):
        shard = read_shard(path)
        manifest.require_fingerprint(shard.fingerprint, path)
        yield shard


def splitter_language(fingerprint: str) -> str:
    """The language that a store's texts were split as, from its fingerprint; "" if that names none.

    >>> splitter_language("MiniLM:1:mean:256|units-1:noun:noun:de"), splitter_language("MiniLM|units-1:noun:noun")
    ('de', 'en')
    """
    found = _RULES.search(fingerprint)
    if found is None:
        return ""
    return found[1] if found[1] in LANGUAGES else "en"


def _added(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The sum of two histograms of different length."""
    total = np.zeros(max(len(one), len(other)), np.int64)
    total[: len(one)] += one
    total[: len(other)] += other
    return total


def _merged(
    hashes: np.ndarray, numbers: np.ndarray, more_hashes: np.ndarray, more_numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Counts by hash, with more of them added."""
    merged, places = np.unique(np.concatenate([hashes, more_hashes]), return_inverse=True)
    total = np.bincount(places, weights=np.concatenate([numbers, more_numbers]), minlength=len(merged))
    return merged, total.astype(np.uint32)


def _most(hashes: np.ndarray, numbers: np.ndarray, at_most: int) -> dict[int, int]:
    """The hashes with the greatest counts."""
    order = np.argsort(numbers, kind="stable")[::-1][:at_most]
    return {int(hashes[i]): int(numbers[i]) for i in order}


def _named(
    folder: str | Path, manifest: Manifest, most: Mapping[str, Mapping[int, int]]
) -> dict[str, list[tuple[str, int]]]:
    """The units of these hashes, by falling count, then by name."""
    missing = {key for found in most.values() for key in found}
    names: dict[int, str] = {}
    for shard in _shards(folder, manifest):
        if not missing:
            break
        words = list(shard.vocabulary)
        for word, key in zip(words, id_hashes(words).tolist(), strict=True):
            if key in missing:
                names[key] = word
                missing.discard(key)
    return {
        name: sorted(((names[key], number) for key, number in found.items()), key=lambda pair: (-pair[1], pair[0]))
        for name, found in most.items()
    }


def _script(text: str) -> str:
    """The script of a text's first letter, as Unicode names letters; "no letter" if it has none."""
    return next((_script_of(character) for character in text if character.isalpha()), "no letter")


@cache
def _script_of(character: str) -> str:
    return unicodedata.name(character, "unknown").split()[0]
