"""COCO as published: captions, object boxes, or both, and the images of each split in a folder of its name."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tavq_plugin.data.decode import decode_text
from tavq_plugin.data.read_counts import ReadCounts
from tavq_plugin.data.records import (
    Record,
    Reject,
    Rejection,
    captions_as_text,
    has_surrogates,
    path_inside,
    raise_rejection,
)
from tavq_plugin.data.unnamed_files import NamedFiles

T = TypeVar("T")
_KINDS = ("captions", "instances")


def is_coco(folder: Path) -> bool:
    """Whether a folder has COCO's captions or boxes."""
    return any(next((folder / "annotations").glob(f"{kind}_*.json"), None) for kind in _KINDS)


def from_coco(folder: Path, reject: Reject = raise_rejection, counts: ReadCounts | None = None) -> Iterator[Record]:
    """COCO: annotations/captions_SPLIT.json, instances_SPLIT.json, or both; images in SPLIT/.

    A box is unique if no other object of its image has its name; a crowd's box never is. Captions and boxes of an
    image without a usable row are rejected with it.
    """
    counts = counts or ReadCounts()
    files = sorted(file for kind in _KINDS for file in (folder / "annotations").glob(f"{kind}_*.json"))
    for split in dict.fromkeys(file.stem.partition("_")[2] for file in files):
        captioned, boxed = (folder / "annotations" / f"{kind}_{split}.json" for kind in _KINDS)
        images = _Images(reject, counts)
        captions: dict[Any, list[str]] = defaultdict(list)
        boxes: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        if captioned.is_file():
            content = read_coco_json(captioned, "images", "annotations")
            images.add(content["images"], captioned)
            images.annotate(content["annotations"], captioned, _caption, captions)
        if boxed.is_file():
            content = read_coco_json(boxed, "categories", "annotations")
            images.add(content.get("images") or [], boxed)
            names = _category_names(content["categories"])
            images.annotate(content["annotations"], boxed, partial(_box, names=names), boxes)
            _mark_unique(boxes)
        named = NamedFiles()
        for image_id, (file, number, row) in images.rows.items():
            parts = images.parts[image_id]
            try:
                path = path_inside(folder, f"{split}/{row['file_name']}")
            except ValueError as error:
                rejection = Rejection(str(file), number, f"image {image_id}: {error}")
                counts.refuse(reject, rejection, parts)
                continue
            named.add(path)
            counts.take(parts)
            size = (row.get("width"), row.get("height"))
            own = tuple({**box, "size": size} for box in boxes.get(image_id, ()))
            name, each = f"{split}/{row['file_name']}", captions.get(image_id, [])
            yield Record(name, path, captions_as_text(each), split, "coco", own, captions=tuple(each))
        places = [folder / "images" / split, folder / split]
        named.count_others(places, f"images that no row of annotations/*_{split}.json names", counts)
    counts.check(folder)


class _Images:
    """The rows of images of one split by their id, and how many rows each has with its annotations."""

    def __init__(self, reject: Reject, counts: ReadCounts) -> None:
        self.rows: dict[Any, tuple[Path, int, dict[str, Any]]] = {}  # id → file, number and row
        self.parts: Counter[Any] = Counter()
        self.reject, self.counts = reject, counts

    def add(self, rows: list[Any], file: Path) -> None:
        """Take the rows of a file; one that another file has too is the same image."""
        for number, row in enumerate(rows, 1):
            reason = self._flaw(row, file)
            if reason:
                self.counts.refuse(self.reject, Rejection(str(file), number, f"image {number} {reason}"))
            else:
                self.rows.setdefault(row["id"], (file, number, row))
                self.parts[row["id"]] += 1

    def _flaw(self, row: Any, file: Path) -> str | None:
        if not isinstance(row, dict):
            return "is no object; fetch the file again"
        if not isinstance(row.get("id"), int | str) or not isinstance(row.get("file_name"), str):
            return "needs an 'id' and a 'file_name'; fetch the file again"
        known, _, other = self.rows.get(row["id"], (None, 0, row))
        if known == file:
            return f"has an id of another one: image id {row['id']} comes twice; keep one"
        if other["file_name"] != row["file_name"]:
            return f"has the id {row['id']}, which is {other['file_name']!r} in {known}, not {row['file_name']!r}"
        return None

    def annotate(
        self, rows: list[Any], file: Path, read: Callable[[dict[str, Any]], T], own: dict[Any, list[T]]
    ) -> None:
        """Put what `read` makes of each row into the list of its image."""
        for number, row in enumerate(rows, 1):
            try:
                image_id, made = row["image_id"], read(row)
                if image_id not in self.rows:
                    raise ValueError(f"it belongs to image {image_id}, which has no row; fetch the file again")
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                why = str(error) if isinstance(error, ValueError) else f"it lacks {error}; fetch the file again"
                self.counts.refuse(self.reject, Rejection(str(file), number, f"annotation {number}: {why}"))
            else:
                own[image_id].append(made)
                self.parts[image_id] += 1


def read_coco_json(file: Path, *parts: str) -> dict[str, Any]:
    """The content of a file of annotations; raises ValueError if it is not JSON, or lacks one of its parts."""
    try:
        content = json.loads(decode_text(file.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); fetch it again") from error
    missing = [part for part in parts if not (isinstance(content, dict) and isinstance(content.get(part), list))]
    if missing:
        raise ValueError(f"{file}: has no list {', '.join(map(repr, missing))}; give COCO's file as published")
    return content


def _caption(row: dict[str, Any]) -> str:
    caption = row["caption"]
    if not isinstance(caption, str) or has_surrogates(caption):
        raise ValueError(f"the caption {caption!r} is no text in UTF-8; mend it")
    return caption


def _category_names(categories: list[Any]) -> dict[Any, str]:
    """Category → name, of those that have both."""
    rows = [row for row in categories if isinstance(row, dict)]
    return {
        row["id"]: row["name"] for row in rows if isinstance(row.get("id"), int) and isinstance(row.get("name"), str)
    }


def _box(row: dict[str, Any], names: dict[Any, str]) -> dict[str, Any]:
    category, bbox = row["category_id"], row["bbox"]
    if category not in names:
        raise ValueError(f"it has category {category}, which has no name; fetch the file again")
    if len(bbox) != 4 or not all(isinstance(value, int | float) for value in bbox):
        raise ValueError(f"the bbox {bbox} is not [x, y, width, height]; fetch the file again")
    return {"phrase": names[category], "xywh": bbox, "unique": not row.get("iscrowd", 0)}


def _mark_unique(boxes: dict[Any, list[dict[str, Any]]]) -> None:
    """Say of each box whether it is the only one of its name in its image."""
    for own in boxes.values():
        count = Counter(box["phrase"] for box in own)
        for box in own:
            box["unique"] = box["unique"] and count[box["phrase"]] == 1
