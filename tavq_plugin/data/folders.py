"""Read a folder of images whose texts are in one `captions.jsonl`, or in `.txt` files named like the images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from tavq_plugin.data.records import (
    IMAGE_ENDINGS,
    Record,
    Reject,
    Rejection,
    captions_as_text,
    has_surrogates,
    is_hidden,
    raise_rejection,
    read_lines,
)
from tavq_plugin.data.splits import Splits, split_records
from tavq_plugin.data.tables import from_table


@dataclass(frozen=True)
class ImageTextFolder:
    """The records of a folder, in the order of captions.jsonl, or sorted by name."""

    folder: Path
    records: tuple[Record, ...]

    @classmethod
    def read(cls, folder: str | Path) -> ImageTextFolder:
        """Read a folder; raises ValueError with the file and line that cannot be read, and the mend."""
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}: --data takes a folder of images with text")
        table = folder / "captions.jsonl"
        records = tuple(from_table(table, images=True) if table.exists() else from_folder(folder))
        _refuse_repeated_images(records, table)
        if not records:
            raise ValueError(
                f"no images in {folder}: give a folder with captions.jsonl and images/, or one of images "
                f"({', '.join(IMAGE_ENDINGS)}) with same-named .txt files"
            )
        return cls(folder, records)

    @property
    def without_text(self) -> int:
        """How many records have no text; they are kept, but align with nothing."""
        return sum(not record.text for record in self.records)

    def split(self, *, n_train: int | None = None, n_eval: int | None = None, seed: int = 0) -> Splits:
        """Train, tune and test records, as `split_records` says; raises ValueError if too few are there."""
        splits = split_records(self.records, n_train=n_train, n_eval=n_eval, seed=seed)
        if not splits.train or not splits.tune:
            raise ValueError(
                f"{self.folder} has {len(self.records)} images: give at least 2, one to train and one to tune on"
            )
        return splits


def _refuse_repeated_images(records: tuple[Record, ...], table: Path) -> None:
    ids: set[str] = set()
    for record in records:
        if record.id in ids:
            raise ValueError(f"{table}: image {record.id!r} appears in two lines: keep one of them")
        ids.add(record.id)


def from_folder(folder: Path, reject: Reject = raise_rejection) -> Iterator[Record]:
    """Images anywhere below a folder, each with the lines of its .txt file as captions.

    Links to files and folders are followed; names that begin with a dot, and __MACOSX, are skipped.
    """
    for path in _walk(folder, reject):
        if path.suffix.lower() not in IMAGE_ENDINGS:
            continue
        if has_surrogates(str(path)):
            reject(Rejection(str(path), None, "its file name is not UTF-8; rename it"))
            continue
        if not path.is_file():
            reject(Rejection(str(path), None, "a broken link; mend or delete it"))
            continue
        text = read_lines(path.with_suffix(".txt"), reject)
        if text is not None:
            name = path.relative_to(folder).as_posix()
            yield Record(id=name, image=path, text=captions_as_text(text), captions=tuple(text))


def _walk(folder: Path, reject: Reject, parents: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files below a folder and broken links, sorted by name; only one folder's names are in memory at a time."""
    parents |= {os.path.realpath(folder)}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_hidden(PurePath(entry.name)):
            continue
        linked = entry.is_symlink()
        if not (os.path.isdir(entry.path) if linked else entry.is_dir()):
            if linked or entry.is_file():
                yield Path(entry.path)
        elif linked and os.path.realpath(entry.path) in parents:
            reject(Rejection(entry.path, None, "a link to a folder above it, which has no end; delete it"))
        else:
            yield from _walk(Path(entry.path), reject, parents)
