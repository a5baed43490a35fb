"""COCO as published: captions, object boxes, or both, and the images of each split in a folder of its name."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tavq_plugin.data.decode import decode_text
from tavq_plugin.data.records import (
    Record,
    Reject,
    Rejection,
    captions_as_text,
    path_inside,
    raise_rejection,
)

_KINDS = ("captions", "instances")


def is_coco(folder: Path) -> bool:
    """Whether a folder has COCO's captions or boxes."""
    return any(next((folder / "annotations").glob(f"{kind}_*.json"), None) for kind in _KINDS)


def from_coco(folder: Path, reject: Reject = raise_rejection) -> Iterator[Record]:
    """COCO: annotations/captions_SPLIT.json, instances_SPLIT.json, or both; images in SPLIT/.

    A box is unique if no other object of its image has its name; a crowd's box never is.
    """
    files = sorted(file for kind in _KINDS for file in (folder / "annotations").glob(f"{kind}_*.json"))
    for split in dict.fromkeys(file.stem.partition("_")[2] for file in files):
        captioned, boxed = (folder / "annotations" / f"{kind}_{split}.json" for kind in _KINDS)
        captions: dict[int, list[str]] = defaultdict(list)
        images, file = list[dict[str, Any]](), captioned
        if captioned.is_file():
            content = read_coco_json(captioned, "images", "annotations")
            images = content["images"]
            for row in content["annotations"]:
                captions[row["image_id"]].append(row["caption"])
        boxes: dict[int, list[dict[str, Any]]] = {}
        if boxed.is_file():
            content = read_coco_json(boxed, "categories", "annotations")
            boxes = _boxes_of_images(content, boxed, reject)
            if not captioned.is_file():
                images, file = content.get("images", []), boxed
        for number, row in enumerate(images, 1):
            try:
                path = path_inside(folder, f"{split}/{row['file_name']}")
            except ValueError as error:
                reject(Rejection(str(file), number, f"image {row['id']}: {error}"))
                continue
            size = (row.get("width"), row.get("height"))
            own = tuple({**box, "size": size} for box in boxes.get(row["id"], ()))
            name, each = f"{split}/{row['file_name']}", captions[row["id"]]
            yield Record(name, path, captions_as_text(each), split, "coco", own, captions=tuple(each))


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


def _boxes_of_images(content: dict[str, Any], file: Path, reject: Reject) -> dict[int, list[dict[str, Any]]]:
    names = {row["id"]: row["name"] for row in content["categories"]}
    boxes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for number, row in enumerate(content["annotations"], 1):
        name = names.get(row["category_id"])
        if name is None:
            reason = f"annotation {number} has category {row['category_id']}, which has no name; fetch the file again"
            reject(Rejection(str(file), number, reason))
            continue
        boxes[row["image_id"]].append({"phrase": name, "xywh": row["bbox"], "unique": not row.get("iscrowd", 0)})
    for own in boxes.values():
        count = Counter(box["phrase"] for box in own)
        for box in own:
            box["unique"] = box["unique"] and count[box["phrase"]] == 1
    return boxes
