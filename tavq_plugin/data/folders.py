"""Read a folder of images whose texts are in one `captions.jsonl`, or in `.txt` files named like the images."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from tavq_plugin.data.read_counts import SYSTEM_FILES, ReadCounts
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.records import (
    IMAGE_ENDINGS,
    Record,
    Reject,
    Rejection,
    captions_as_text,
    has_surrogates,
    is_hidden,
    names_in_nfc,
    raise_rejection,
    read_lines,
)
from tavq_plugin.data.splits import Splits, split_records
from tavq_plugin.io.counted import counted
from tavq_plugin.text.text_id import text_id


@dataclass(frozen=True)
class ImageTextFolder:
    """The records of a folder, in the order of captions.jsonl, or sorted by name."""

    folder: Path
    records: tuple[Record, ...]
    settings: ReadSettings | None = None  # how they were read
    skipped: str = ""  # what was not read since it is no data, such as system files, in words

    @classmethod
    def read(cls, folder: str | Path, settings: ReadSettings | None = None) -> ImageTextFolder:
        """Read a folder or file, in any form that `read_records` knows.

        Raises ValueError with the file and line that cannot be read, and the mend.
        """
        from tavq_plugin.data.read import read_records

        folder = Path(folder)
        if not folder.exists():
            raise FileNotFoundError(f"no folder {folder}: --data takes a folder of images with text")
        table = folder / "captions.jsonl"
        counts = ReadCounts()
        records = tuple(read_records(folder, settings=settings, counts=counts, images=True))
        _refuse_repeated_images(records, table if table.exists() else folder)
        if not records:
            raise ValueError(
                f"no images in {folder}: give a folder with captions.jsonl and images/, or one of images "
                f"({', '.join(IMAGE_ENDINGS)}) with same-named .txt files"
            )
        return cls(folder, records, settings, counts.told())

    @property
    def without_text(self) -> int:
        """How many records have no text; they are kept, but align with nothing."""
        return sum(not record.text for record in self.records)

    def split(self, *, n_train: int | None = None, n_eval: int | None = None, seed: int = 0) -> Splits:
        """Train, tune and test records, as `split_records` says; raises ValueError if too few are there."""
        splits = split_records(self.records, n_train=n_train, n_eval=n_eval, seed=seed)
        if not splits.train or not splits.tune:
            raise ValueError(
                f"{self.folder} has {counted(len(self.records), 'images')}: give at least 2, one to train and one "
                "to tune on"
            )
        return splits


def _refuse_repeated_images(records: tuple[Record, ...], table: Path) -> None:
    ids: set[str] = set()
    for record in records:
        if record.id in ids:
            raise ValueError(
                f"{table}: image {record.id!r} appears in two lines with others between them: keep one of them, or put "
                "them one after the other, and they are joined"
            )
        ids.add(record.id)


def from_folder(
    folder: Path,
    reject: Reject = raise_rejection,
    counts: ReadCounts | None = None,
    settings: ReadSettings | None = None,
) -> Iterator[Record]:
    """Images anywhere below a folder, each with the lines of its .txt file as captions.

    Links to files and folders are followed; names that begin with a dot, and __MACOSX, are skipped. Other files are
    skipped and counted by their ending.
    """
    counts = counts or ReadCounts()
    for path in _walk(folder, reject, counts):
        counts.parts += 1
        ending = path.suffix.lower()
        if ending == ".txt":
            if _images_named(path):
                counts.used += 1
            else:
                counts.skipped[".txt without an image of its name"] += 1
            continue
        if ending not in IMAGE_ENDINGS:
            counts.skipped[ending or "without an ending"] += 1
            continue
        record = _record(path, folder, reject, settings)
        if record is None:
            counts.rejected += 1
        else:
            counts.used += 1
            yield record
    counts.check(folder)


def _record(path: Path, folder: Path, reject: Reject, settings: ReadSettings | None) -> Record | None:
    """The record of one image; None if it is rejected."""
    if has_surrogates(str(path)):
        reject(Rejection(str(path), None, "its file name is not UTF-8; rename it"))
        return None
    if not path.is_file():
        reject(Rejection(str(path), None, "a broken link; mend or delete it"))
        return None
    text = read_lines(_text_beside(path), reject, settings, "largest_text")
    if text is None:
        return None
    name, used = text_id(path.relative_to(folder).as_posix()), captions_as_text(text)
    return Record(id=name, image=path, text=used, captions=tuple(text), fields=() if used else ("images",))


def _text_beside(image: Path) -> Path:
    """The .txt file of an image, also if one of the two names is decomposed, as macOS writes accents."""
    file = image.with_suffix(".txt")
    if file.name.isascii() or file.is_file():
        return file
    return file.with_name(names_in_nfc(str(file.parent)).get(unicodedata.normalize("NFC", file.name), file.name))


def _images_named(text: Path) -> bool:
    """Whether an image has the name of a .txt file."""
    if any(text.with_suffix(ending).is_file() for ending in IMAGE_ENDINGS):
        return True
    names = names_in_nfc(str(text.parent))
    stem = unicodedata.normalize("NFC", text.stem)
    return any(f"{stem}{ending}" in names for each in IMAGE_ENDINGS for ending in (each, each.upper()))


def _walk(folder: Path, reject: Reject, counts: ReadCounts, parents: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files below a folder and broken links, sorted by name; only one folder's names are in memory at a time."""
    parents |= {os.path.realpath(folder)}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_hidden(PurePath(entry.name)):
            counts.parts += 1
            counts.skipped[SYSTEM_FILES] += 1
            continue
        linked = entry.is_symlink()
        if not (os.path.isdir(entry.path) if linked else entry.is_dir()):
            if linked or entry.is_file():
                yield Path(entry.path)
            else:
                counts.parts += 1
                counts.skipped["special files (sockets, devices)"] += 1
        elif linked and os.path.realpath(entry.path) in parents:
            counts.parts += 1
            counts.rejected += 1
            reject(Rejection(entry.path, None, "a link to a folder above it, which has no end; delete it"))
        else:
            yield from _walk(Path(entry.path), reject, counts, parents)
