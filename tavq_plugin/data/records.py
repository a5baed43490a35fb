"""Images with text, one record at a time: from folders, JSONL, CSV and Parquet files; what is broken is named.

Every reader takes `reject`: with it a broken record is handed over and left out, without it ValueError is raised.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
TABLE_ENDINGS = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Record:
    """One image and what is said of it; `text` may be empty."""

    id: str
    image: Path | bytes | None  # None: only its text is known; bytes: the encoded file, from an archive
    text: str
    split: str | None = None
    source: str | None = None
    boxes: tuple[dict[str, Any], ...] = ()
    qa: tuple[dict[str, Any], ...] = ()
    masks: tuple[Path, ...] = ()
    captioner: str | None = None  # model, revision and prompt of a text that `tavq caption` wrote
    line: int | None = None  # or row, in the file it stands in


class Rejection(NamedTuple):
    """A record that is left out, and why."""

    file: str
    line: int | None  # or row, or member; None where the file is the record
    reason: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{place}: {self.reason}"


Reject = Callable[[Rejection], None]


def refuse(rejection: Rejection) -> None:
    """What is done without a `reject` of one's own."""
    raise ValueError(str(rejection))


def read_records(place: str | Path, reject: Reject = refuse) -> Iterator[Record]:
    """The records of a folder (captions.jsonl, a known layout, or images with same-named .txt), a .jsonl, .csv or
    .parquet file, a .tar or a folder of .tar; in an order that depends on their names alone.

    Repeated ids are the caller's to see: memory does not grow with the number of records.
    """
    place = Path(place)
    if place.is_dir():
        from tavq_plugin.data.layouts import layout_of

        if (place / "captions.jsonl").is_file():
            return from_table(place / "captions.jsonl", reject)
        known = layout_of(place)
        return known(place, reject) if known else from_folder(place, reject)
    if not place.is_file():
        raise FileNotFoundError(f"no file or folder {place}: give images with text, or a file of captions")
    if place.suffix == ".tar":
        from tavq_plugin.data.tars import from_tars

        return from_tars([place], reject)
    if place.suffix not in TABLE_ENDINGS:
        raise ValueError(f"{place}: cannot read {place.suffix!r} files; give one of {', '.join(TABLE_ENDINGS)}, .tar")
    return from_table(place, reject)


def from_table(file: Path, reject: Reject = refuse, *, images: bool = False) -> Iterator[Record]:
    """One record a row; `images`: a row without an image is refused."""
    for line, row in _rows(file, reject):
        try:
            yield replace(record(row, file.parent, images=images), line=line)
        except ValueError as error:
            reject(Rejection(str(file), line, str(error)))


def record(row: Mapping[str, Any], folder: Path, *, images: bool = False) -> Record:
    """A row understood: image or id, and long_text, text or captions; ValueError says what is wrong with it."""
    image = row.get("image") or row.get("file_name")
    if (images or image is not None) and not (isinstance(image, str) and image):
        raise ValueError('no "image"; give one object a line with the image\'s file name')
    name = row.get("id", image) if not images else image
    if not isinstance(name, (str, int)) or name == "":
        raise ValueError('no "image" and no "id"; give one object a line with the image\'s file name')
    text = row.get("long_text") or row.get("text") or row.get("caption") or ""
    captions, boxes, qa = (row.get(key) or [] for key in ("captions", "boxes", "qa"))
    if not isinstance(text, str) or not (
        isinstance(captions, list) and all(isinstance(caption, str) for caption in captions)
    ):
        raise ValueError('"long_text" must be a string and "captions" a list of strings')
    if not isinstance(boxes, list) or not isinstance(qa, list):
        raise ValueError('"boxes" and "qa" must be lists')
    for string in (str(name), text, *captions):
        if any("\ud800" <= character <= "\udfff" for character in string):
            raise ValueError(f"not UTF-8: {string[:40]!r}; save the file as UTF-8")
    captioner = [row.get(key) for key in ("model", "revision", "prompt")]
    return Record(
        id=str(name),
        image=None if image is None else inside(folder, image),
        text="" if row.get("flag") else text.strip() or joined(captions),  # flagged: a refusal or a loop
        split=row.get("split"),
        source=row.get("source"),
        boxes=tuple(boxes),
        qa=tuple(qa),
        captioner=json.dumps(captioner) if any(captioner) else None,
    )


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


def lines_of(file: Path, reject: Reject = refuse) -> list[str] | None:
    """The lines of a text file, none where it is missing; None where it is rejected."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
    except UnicodeDecodeError as error:
        reject(Rejection(str(file), None, f"not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"))
        return None


def inside(folder: Path, name: str) -> Path:
    """The image's path; ValueError where the name leads out of the folder or to nothing.

    The name is what is not trusted: `..` is taken off it before any link is followed. Links are the folder's owner's
    own (images/ on another disk, a subset made of links), and are followed.
    """
    roots = {Path(os.path.abspath(folder)), folder.resolve()}
    for base in (folder / "images", folder):
        path = Path(os.path.abspath(base / name))
        if not any(path.is_relative_to(root) for root in roots):
            raise ValueError(f"image {name!r} leads out of {folder}; only files inside are read")
        try:
            there = path.is_file()
        except (ValueError, OSError) as error:  # a null byte, a name too long
            raise ValueError(f"image {name[:80]!r} is no file name ({error})") from error
        if there:
            return path
    raise ValueError(f"no file {name!r} in {folder / 'images'} or {folder}; add it or delete the line")


def hidden(name: PurePath) -> bool:
    """Whether a relative name is no user's file: .DS_Store, ._0.png, __MACOSX/0.png, .git/…

    >>> [hidden(PurePath(name)) for name in ("a/._0.png", "__MACOSX/0.png", "./a/0.png", "a/../0.png")]
    [True, True, False, False]
    """
    return any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in name.parts)


def joined(captions: list[str]) -> str:
    """Captions as the sentences of one text.

    >>> joined(["a dog runs", " Two men. ", ""])
    'A dog runs. Two men.'
    """
    captions = [caption.strip() for caption in captions]
    ends = (".", "!", "?")
    return " ".join(c[0].upper() + c[1:] + ("" if c.endswith(ends) else ".") for c in captions if c)


def _rows(file: Path, reject: Reject) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.suffix == ".parquet":
        import pyarrow.parquet

        number = 0
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    elif file.suffix == ".csv":
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            reader = csv.DictReader(lines)
            while True:
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    reject(Rejection(str(file), reader.line_num, f"not CSV ({error}); mend or delete the line"))
                else:
                    yield reader.line_num, {key: value for key, value in row.items() if key and value}
    else:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.removeprefix(codecs.BOM_UTF8).strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8-sig"))  # a mark may open any line: files are joined by cat
                    if not isinstance(row, dict):
                        raise ValueError("no object")
                except UnicodeDecodeError as error:
                    reject(Rejection(str(file), number, f"not UTF-8 ({error.reason} at byte {error.start})"))
                except (ValueError, RecursionError) as error:
                    reject(Rejection(str(file), number, f"not JSON ({error}); mend or delete the line"))
                else:
                    yield number, row


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
