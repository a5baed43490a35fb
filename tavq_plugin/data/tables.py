"""Tables of images with text: one record per image, from one row or several that follow each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tavq_plugin.data.read_counts import ReadCounts
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.records import (
    Record,
    Reject,
    Rejection,
    captions_as_text,
    has_surrogates,
    path_inside,
    raise_rejection,
)
from tavq_plugin.data.row_texts import IMAGE_FIELDS, row_texts
from tavq_plugin.data.rows import Row, read_rows
from tavq_plugin.text.text_id import text_id


def from_table(
    file: Path,
    reject: Reject = raise_rejection,
    settings: ReadSettings | None = None,
    counts: ReadCounts | None = None,
    *,
    images: bool = False,
) -> Iterator[Record]:
    """One record per image; with `images`, a row without an image is rejected.

    Rows of one image that follow each other are joined: each of their texts becomes a caption.
    """
    settings, counts = settings or ReadSettings(), counts or ReadCounts()
    rows = read_rows(file, reject, settings, counts)
    yield from records_of_rows(rows, file, file.parent, reject, settings, counts, images=images)
    counts.check(file)


def records_of_rows(
    rows: Iterable[Row],
    file: Path,
    folder: Path,
    reject: Reject,
    settings: ReadSettings,
    counts: ReadCounts,
    *,
    images: bool = False,
) -> Iterator[Record]:
    """The records of rows that were counted; a row that gives none is rejected and counted."""
    before, joined = None, 0
    for line, row in rows:
        try:
            record = record_from_row(row, folder, settings, images=images, number=line)
        except ValueError as error:
            counts.rejected += 1
            reject(Rejection(str(file), line, str(error)))
            continue
        record = replace(record, line=line)
        if before is not None and record.id == before.id and record.image == before.image:
            before, joined = _joined(before, record), joined + 1
            continue
        if before is not None:
            counts.used += joined
            yield before
        before, joined = record, 1
    if before is not None:
        counts.used += joined
        yield before


def _joined(one: Record, other: Record) -> Record:
    """One record of two rows of an image; a text that both have stays once."""
    texts = [record.captions or ((record.text,) if record.text else ()) for record in (one, other)]
    captions = tuple(dict.fromkeys(caption for each in texts for caption in each))
    boxes, qa = (
        [*first, *(entry for entry in second if entry not in first)]
        for first, second in ((one.boxes, other.boxes), (one.qa, other.qa))
    )
    return replace(
        one,
        text=captions_as_text(list(captions)),
        captions=captions,
        boxes=tuple(boxes),
        qa=tuple(qa),
        masks=tuple(dict.fromkeys((*one.masks, *other.masks))),
        fields=() if captions else one.fields,
    )


def record_from_row(
    row: Mapping[str, Any],
    folder: Path,
    settings: ReadSettings | None = None,
    *,
    images: bool = False,
    number: int | None = None,
) -> Record:
    """The record of a row with image or id, and a text; raises ValueError with what is wrong.

    Args:
        row: The fields by name.
        folder: Where images are.
        settings: The fields with id and text. Default: those that are understood.
        images: If true, the image is needed, and its name is the id.
        number: Number of the row, counted from 1: with it, an image inside the row needs no name.
    """
    settings = settings or ReadSettings()
    image = next((row[name] for name in IMAGE_FIELDS if row.get(name) not in (None, "")), None)
    image, name = _image(image, folder)
    if images and image is None:
        raise ValueError(f'no "image" among the fields {_names(row)}; give the image\'s file name as "image"')
    if settings.id_field is not None:
        key = row.get(settings.id_field)
        if key is None:
            raise ValueError(f"no field {settings.id_field!r} with the id among the fields {_names(row)}")
    else:
        key = name if (images and name) or row.get("id") is None else row["id"]
        if key is None and image is not None and number is not None:
            key = number - 1  # as Hugging Face counts rows
    if key is None or key == "":
        raise ValueError(
            f'no "image" and no "id" among the fields {_names(row)}; give {", ".join(IMAGE_FIELDS)} with the image\'s '
            "file name, or name the field with the id by --id-field"
        )
    text, captions = row_texts(row, settings.text_field)
    boxes, qa, masks = (row.get(key) or [] for key in ("boxes", "qa", "masks"))
    if not isinstance(boxes, list) or not isinstance(qa, list):
        raise ValueError('"boxes" and "qa" must be lists')
    if not isinstance(masks, list) or not all(isinstance(mask, str) for mask in masks):
        raise ValueError('"masks" must be a list of file names, one per part of the image: "masks/a_hair.png"')
    for string in (str(key), text, *captions):
        if has_surrogates(string):
            raise ValueError(f"not UTF-8: {string[:40]!r}; save the file as UTF-8")
        if reason := settings.excess(len(string), "largest_text"):
            raise ValueError(f"the text {string[:40]!r} is too long: {reason}")
    captioner = [row.get(key) for key in ("model", "revision", "prompt")]
    if settings_of_text := row.get("settings"):
        as_text = isinstance(settings_of_text, str)  # in Parquet
        captioner.append(settings_of_text if as_text else json.dumps(settings_of_text, sort_keys=True))
    flagged = bool(row.get("flag"))  # a flagged text is not used
    used = "" if flagged else text or captions_as_text(captions)
    return Record(
        id=text_id(key),
        image=image,
        masks=tuple(path_inside(folder, mask) for mask in masks),
        text=used,
        split=row.get("split"),
        source=row.get("source"),
        boxes=tuple(boxes),
        qa=tuple(qa),
        captions=() if flagged else tuple(captions),
        captioner=json.dumps(captioner) if any(captioner) else None,
        fields=() if used else tuple(map(str, row)),
    )


def _image(value: Any, folder: Path) -> tuple[Path | bytes | None, str | None]:
    """The image of a row, a file or its bytes, and its name if it has one."""
    if isinstance(value, Mapping) and value.keys() <= {"bytes", "path"}:  # as Hugging Face stores images
        name = value.get("path")
        if value.get("bytes") is not None:
            return bytes(value["bytes"]), name or None
        value = name
    if value is None:
        return None, None
    if isinstance(value, bytes):
        return value, None
    if not isinstance(value, str) or not value:
        raise ValueError(
            f'no "image": it must be a file name or the bytes of an image, got {type(value).__name__} '
            f"{str(value)[:40]!r}; give one object per line with the image's file name"
        )
    return path_inside(folder, value), value


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(list(map(str, row))[:12]) or "(none)"
