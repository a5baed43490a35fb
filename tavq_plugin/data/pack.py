"""A folder of images with text: one `captions.jsonl`, or same-named `.txt` files."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
HELD_OUT = ("val", "valid", "validation", "test")
SHARE_HELD_OUT = 0.15


@dataclass(frozen=True)
class Record:
    """One image and what is said of it; `text` may be empty."""

    id: str
    image: Path
    text: str
    split: str | None = None
    source: str | None = None
    boxes: tuple[dict[str, Any], ...] = ()
    qa: tuple[dict[str, Any], ...] = ()


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
        records = tuple(_from_jsonl(table) if table.exists() else _from_txt(folder))
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


def joined(captions: list[str]) -> str:
    """Captions as the sentences of one text.

    >>> joined(["a dog runs", " Two men. ", ""])
    'A dog runs. Two men.'
    """
    captions = [caption.strip() for caption in captions]
    ends = (".", "!", "?")
    return " ".join(c[0].upper() + c[1:] + ("" if c.endswith(ends) else ".") for c in captions if c)


def _from_jsonl(table: Path) -> Iterator[Record]:
    seen: dict[str, int] = {}
    with table.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{table}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{place}: not JSON ({error}); mend or delete the line") from error
            if not isinstance(row, dict) or not isinstance(row.get("image"), str) or not row["image"]:
                raise ValueError(f'{place}: no "image"; give one object a line with the image\'s file name')
            text, captions = row.get("long_text") or "", row.get("captions") or []
            if not isinstance(text, str) or not (
                isinstance(captions, list) and all(isinstance(caption, str) for caption in captions)
            ):
                raise ValueError(f'{place}: "long_text" must be a string and "captions" a list of strings')
            name = row["image"]
            if name in seen:
                raise ValueError(f"{place}: image {name!r} stands in line {seen[name]} already; keep one of them")
            seen[name] = number
            yield Record(
                id=name,
                image=_inside(table.parent, name, place),
                text=text.strip() or joined(captions),
                split=row.get("split"),
                source=row.get("source"),
                boxes=tuple(row.get("boxes") or ()),
                qa=tuple(row.get("qa") or ()),
            )


def _inside(folder: Path, name: str, place: str) -> Path:
    """The image's path; refused where it leads out of the folder or to nothing."""
    root = folder.resolve()
    for base in (folder / "images", folder):
        path = (base / name).resolve()
        if not path.is_relative_to(root):
            raise ValueError(f"{place}: image {name!r} leads out of {folder}; only files inside are read")
        if path.is_file():
            return path
    raise ValueError(f"{place}: no file {name!r} in {folder / 'images'} or {folder}; add it or delete the line")


def _from_txt(folder: Path) -> Iterator[Record]:
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_ENDINGS or not path.is_file():
            continue
        if not path.resolve().is_relative_to(root):
            raise ValueError(f"{path} is a link out of {folder}; only files inside are read")
        text = path.with_suffix(".txt")
        try:
            lines = text.read_text(encoding="utf-8").splitlines() if text.is_file() else []
        except UnicodeDecodeError as error:
            raise ValueError(f"{text}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
        yield Record(id=path.relative_to(folder).as_posix(), image=path, text=joined(lines))
