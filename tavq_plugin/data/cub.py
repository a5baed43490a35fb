"""CUB-200-2011 as published: birds with a split, a box and ten captions each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tavq_plugin.data.read_counts import ReadCounts
from tavq_plugin.data.records import (
    Record,
    Reject,
    Rejection,
    captions_as_text,
    path_inside,
    raise_rejection,
    read_lines,
)
from tavq_plugin.data.unnamed_files import NamedFiles, first_folder

ROWS, SPLIT, BOXES = "images.txt", "train_test_split.txt", "bounding_boxes.txt"
_TEXTS = ("text_c10", "text", "captions")
_SPLITS = {"1": "train", "0": "test"}

Rows = dict[str, tuple[int, list[str]]]  # number of the image → line, and values


def from_cub(folder: Path, reject: Reject = raise_rejection, counts: ReadCounts | None = None) -> Iterator[Record]:
    """CUB-200-2011: images.txt, train_test_split.txt, bounding_boxes.txt, and ten captions per image in text_c10/.

    A row of images.txt is rejected if its image, split or box is missing or broken; captions may be missing.
    """
    counts = counts or ReadCounts()
    images, splits, boxes = (_rows(folder / name, reject, counts) for name in (ROWS, SPLIT, BOXES))
    texts = first_folder(folder, _TEXTS, "captions of CUB")
    named, named_texts = NamedFiles(), NamedFiles()
    for number, (line, (name, *_)) in images.items():
        own = [rows.pop(number, None) for rows in (splits, boxes)]
        parts = 1 + sum(row is not None for row in own)
        try:
            path = path_inside(folder, name)
            named.add(path)
            text = (texts / name).with_suffix(".txt")
            named_texts.add(text)
            split, box = _split(number, own[0]), _boxes(name, own[1])
        except ValueError as error:
            counts.refuse(reject, Rejection(str(folder / ROWS), line, str(error)), parts)
            continue
        lines = read_lines(text, reject, limit="largest_text")
        if lines is None:
            counts.parts += parts
            counts.rejected += parts
            continue
        counts.take(parts)
        yield Record(name, path, captions_as_text(lines), split, "cub", box, captions=tuple(lines))
    counts.skip(f"rows of {SPLIT} and {BOXES} whose number is not in {ROWS}", len(splits) + len(boxes))
    named_texts.count_others([texts], "texts without an image", counts, (".txt",))
    named.count_others([folder / "images"], f"images that no row of {ROWS} names", counts)
    counts.check(folder)


def _rows(file: Path, reject: Reject, counts: ReadCounts) -> Rows:
    """The rows of a file by their image's number; broken and repeated rows are rejected."""
    rows: Rows = {}
    if not file.is_file():
        return rows
    lines = read_lines(file, lambda rejection: counts.refuse(reject, rejection))
    for line, text in enumerate(lines or [], 1):
        number, *values = text.split() or [""]
        if values and number not in rows:
            rows[number] = (line, values)
        elif number:
            flaw = "repeats a number" if values else "has one column"
            reason = f"{text!r} {flaw}; give a number of its own and a value"
            counts.refuse(reject, Rejection(str(file), line, reason))
    return rows


def _split(number: str, row: tuple[int, list[str]] | None) -> str:
    flag = row[1][0] if row else None
    if flag not in _SPLITS:
        raise ValueError(f"image {number} has no split: {SPLIT} must have 1 (train) or 0 (test) for it, got {flag!r}")
    return _SPLITS[flag]


def _boxes(name: str, row: tuple[int, list[str]] | None) -> tuple[dict[str, Any], ...]:
    """The bird's box with the name of its species; () if the file has none."""
    if row is None:
        return ()
    try:
        x, y, width, height = map(float, row[1])
    except ValueError as error:
        raise ValueError(f"{' '.join(row[1])!r} in line {row[0]} of {BOXES} is no box x y width height") from error
    phrase = name.split("/")[0].partition(".")[2].replace("_", " ").lower() or "bird"
    return ({"phrase": phrase, "xywh": [x, y, width, height]},)
