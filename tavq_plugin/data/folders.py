"""A folder of images with text: one `captions.jsonl`, or same-named `.txt` files."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from tavq_plugin.data.records import IMAGE_ENDINGS, Record, Reject, Rejection, hidden, joined, lines_of, refuse
from tavq_plugin.data.tables import from_table

HELD_OUT = ("val", "valid", "validation", "test")
SHARE_HELD_OUT = 0.15


@dataclass(frozen=True)
class Pack:
    """The records of a folder, in the file's order (captions.jsonl) or by name."""

    folder: Path
    records: tuple[Record, ...]

    @classmethod
    def read(cls, folder: str | Path) -> Pack:
        """Read a folder; ValueError names the file and the line that cannot be read, and the mend."""
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}: --data takes a folder of images with text")
        table = folder / "captions.jsonl"
        records = tuple(from_table(table, images=True) if table.exists() else from_folder(folder))
        _no_image_twice(records, table)
        if not records:
            raise ValueError(
                f"no images in {folder}: give a folder with captions.jsonl and images/, or one of images "
                f"({', '.join(IMAGE_ENDINGS)}) with same-named .txt files"
            )
        return cls(folder, records)

    @property
    def without_text(self) -> int:
        """How many records have an empty or missing caption; they are kept, with zero alignment."""
        return sum(not record.text for record in self.records)

    def split(
        self, *, n_train: int | None = None, n_eval: int | None = None, seed: int = 0
    ) -> tuple[list[Record], list[Record]]:
        """Training and held-out records, at most so many of each, drawn by `seed` alone.

        The pack's own train and val (or test) marks are used where both occur, and training then keeps to the
        sources that the held-out records have. A pack without them gets a seeded 85/15 split.
        """
        draw = random.Random(seed)
        held_out = [record for record in self.records if record.split in HELD_OUT]
        train = [record for record in self.records if record.split not in HELD_OUT]
        if held_out and train:
            sources = {record.source for record in held_out}
            train = [record for record in train if record.source in sources] or train
        else:
            mixed = list(self.records)
            draw.shuffle(mixed)
            count = max(1, round(SHARE_HELD_OUT * len(mixed)))
            held_out, train = mixed[:count], mixed[count:]
        if not train:
            raise ValueError(
                f"{self.folder} has {len(self.records)} images: at least 2 are needed, to train and to test"
            )
        if n_train is not None and n_train < len(train):
            train = draw.sample(train, n_train)
        if n_eval is not None and n_eval < len(held_out):
            held_out = draw.sample(held_out, n_eval)
        return train, held_out


def _no_image_twice(records: tuple[Record, ...], table: Path) -> None:
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise ValueError(f"{table}: image {record.id!r} stands in two lines; keep one of them")
        seen.add(record.id)


def from_folder(folder: Path, reject: Reject = refuse) -> Iterator[Record]:
    """Images anywhere below a folder, each with the lines of its same-named .txt as captions.

    Linked files and folders are read as if they lay there; names that begin with a dot, and __MACOSX, are left aside.
    """
    for path in _walk(folder, reject):
        if path.suffix.lower() not in IMAGE_ENDINGS:
            continue
        if any("\ud800" <= character <= "\udfff" for character in str(path)):
            reject(Rejection(str(path), None, "its file name is not UTF-8; rename it"))
            continue
        if not path.is_file():
            reject(Rejection(str(path), None, "a link that leads to nothing; mend or delete it"))
            continue
        text = lines_of(path.with_suffix(".txt"), reject)
        if text is not None:
            yield Record(id=path.relative_to(folder).as_posix(), image=path, text=joined(text))


def _walk(folder: Path, reject: Reject, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files below a folder, and links that lead to nothing, by name; holds the names of one folder at a time."""
    above |= {os.path.realpath(folder)}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if hidden(PurePath(entry.name)):
            continue
        linked = entry.is_symlink()
        if not (os.path.isdir(entry.path) if linked else entry.is_dir()):
            if linked or entry.is_file():
                yield Path(entry.path)
        elif linked and os.path.realpath(entry.path) in above:
            reject(Rejection(entry.path, None, "a link to a folder above it, which would go round in a circle"))
        else:
            yield from _walk(Path(entry.path), reject, above)
