"""Tables of images with text: JSONL, CSV and Parquet files with one record per row."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tavq_plugin.data.records import (
    Record,
    Reject,
    Rejection,
    captions_as_text,
    has_surrogates,
    path_inside,
    raise_rejection,
)

TABLE_ENDINGS = (".jsonl", ".csv", ".parquet")


def from_table(file: Path, reject: Reject = raise_rejection, *, images: bool = False) -> Iterator[Record]:
    """One record per row; with `images`, a row without an image is rejected."""
    for line, row in _rows(file, reject):
        try:
            yield replace(record_from_row(row, file.parent, images=images), line=line)
        except ValueError as error:
            reject(Rejection(str(file), line, str(error)))


def record_from_row(row: Mapping[str, Any], folder: Path, *, images: bool = False) -> Record:
    """The record of a row with image or id, and long_text, text or captions; raises ValueError with what is wrong."""
    image = row.get("image") or row.get("file_name")
    if (images or image is not None) and not (isinstance(image, str) and image):
        raise ValueError('no "image"; give one object per line with the image\'s file name')
    name = row.get("id", image) if not images else image
    if not isinstance(name, (str, int)) or name == "":
        raise ValueError('no "image" and no "id"; give one object per line with the image\'s file name')
    text = row.get("long_text") or row.get("text") or row.get("caption") or ""
    captions, boxes, qa, masks = (row.get(key) or [] for key in ("captions", "boxes", "qa", "masks"))
    if not isinstance(text, str) or not (
        isinstance(captions, list) and all(isinstance(caption, str) for caption in captions)
    ):
        raise ValueError('"long_text" must be a string and "captions" a list of strings')
    if not isinstance(boxes, list) or not isinstance(qa, list):
        raise ValueError('"boxes" and "qa" must be lists')
    if not isinstance(masks, list) or not all(isinstance(mask, str) for mask in masks):
        raise ValueError('"masks" must be a list of file names, one per part of the image: "masks/a_hair.png"')
    for string in (str(name), text, *captions):
        if has_surrogates(string):
            raise ValueError(f"not UTF-8: {string[:40]!r}; save the file as UTF-8")
    captioner = [row.get(key) for key in ("model", "revision", "prompt")]
    return Record(
        id=str(name),
        image=None if image is None else path_inside(folder, image),
        masks=tuple(path_inside(folder, mask) for mask in masks),
        text="" if row.get("flag") else text.strip() or captions_as_text(captions),  # a flagged text is not used
        split=row.get("split"),
        source=row.get("source"),
        boxes=tuple(boxes),
        qa=tuple(qa),
        captions=() if row.get("flag") else tuple(captions),
        captioner=json.dumps(captioner) if any(captioner) else None,
    )


def _rows(file: Path, reject: Reject) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with its number in the file."""
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
                    row = json.loads(line.decode("utf-8-sig"))  # joined files have byte-order marks inside
                    if not isinstance(row, dict):
                        raise ValueError("it is not an object")
                except UnicodeDecodeError as error:
                    reject(Rejection(str(file), number, f"not UTF-8 ({error.reason} at byte {error.start})"))
                except (ValueError, RecursionError) as error:
                    reject(Rejection(str(file), number, f"not JSON ({error}); mend or delete the line"))
                else:
                    yield number, row
