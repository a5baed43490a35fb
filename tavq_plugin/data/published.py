"""Readers of the paper's data as published (CUB-200-2011, CelebA-HQ, COCO), and of folders of archives."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

from tavq_plugin.data.records import (
    IMAGE_ENDINGS,
    Record,
    Reject,
    Rejection,
    captions_as_text,
    is_hidden,
    path_inside,
    raise_rejection,
    read_lines,
)
from tavq_plugin.data.tars import from_tars

RecordReader = Callable[[Path, Reject], Iterator[Record]]
_CUB_TEXTS = ("text_c10", "text", "captions")
_CELEBA_TEXTS = ("celeba-caption", "text", "captions")
_CELEBA_IMAGES = ("CelebA-HQ-img", "images")
_MASKS = "CelebAMask-HQ-mask-anno"


def published_reader(folder: Path) -> RecordReader | None:
    """The reader for a folder, recognised by its typical files; None for any other folder.

    >>> published_reader(Path("/nonexistent")) is None
    True
    """
    if (folder / "images.txt").is_file() and (folder / "train_test_split.txt").is_file():
        return from_cub
    if next((folder / "annotations").glob("captions_*.json"), None):
        return from_coco
    if (folder / _CELEBA_IMAGES[0]).is_dir() or (folder / _CELEBA_TEXTS[0]).is_dir():
        return from_celeba_hq
    if _archives(folder):
        return from_tar_folder
    return None


def from_cub(folder: Path, reject: Reject = raise_rejection) -> Iterator[Record]:
    """CUB-200-2011: images.txt, train_test_split.txt, bounding_boxes.txt, and ten captions per image in text_c10/."""
    split = {number: flag for number, flag, *_ in _columns(folder / "train_test_split.txt", reject)}
    boxes = {number: rest for number, *rest in _columns(folder / "bounding_boxes.txt", reject)}
    texts = _first_folder(folder, _CUB_TEXTS, "captions of CUB")
    for number, name, *_ in _columns(folder / "images.txt", reject):
        try:
            path = path_inside(folder, name)
        except ValueError as error:
            reject(Rejection(str(folder / "images.txt"), int(number), str(error)))
            continue
        lines = read_lines(texts / Path(name).with_suffix(".txt"), reject)
        if lines is not None:
            phrase = name.split("/")[0].partition(".")[2].replace("_", " ").lower() or "bird"
            box = ({"phrase": phrase, "xywh": [float(x) for x in boxes[number]]},) if number in boxes else ()
            yield Record(
                name, path, captions_as_text(lines), "train" if split.get(number) == "1" else "test", "cub", box,
                captions=tuple(lines),
            )  # fmt: skip


def from_celeba_hq(folder: Path, reject: Reject = raise_rejection) -> Iterator[Record]:
    """CelebA-HQ with caption files (0.jpg, 0.txt) and, if present, CelebAMask-HQ's masks."""
    images = _first_folder(folder, _CELEBA_IMAGES, "images of CelebA-HQ")
    texts = _first_folder(folder, _CELEBA_TEXTS, "captions of CelebA-HQ")
    masks: dict[int, list[Path]] = defaultdict(list)
    for path in sorted((folder / _MASKS).glob("*/*.png")):
        if path.stem.split("_")[0].isdigit():
            masks[int(path.stem.split("_")[0])].append(path)
    found = [
        path for path in images.iterdir() if path.suffix.lower() in IMAGE_ENDINGS and not is_hidden(PurePath(path.name))
    ]
    for path in sorted(found, key=lambda path: (len(path.stem), path.stem)):
        lines = read_lines(texts / f"{path.stem}.txt", reject)
        if lines is not None:
            own = masks.get(int(path.stem), []) if path.stem.isdigit() else []
            text, captions = captions_as_text(lines), tuple(lines)
            yield Record(path.name, path, text, source="celeba-hq", masks=tuple(own), captions=captions)


def from_coco(folder: Path, reject: Reject = raise_rejection) -> Iterator[Record]:
    """COCO: annotations/captions_SPLIT.json, instances_SPLIT.json if present, images in SPLIT/."""
    for file in sorted((folder / "annotations").glob("captions_*.json")):
        split = file.stem.removeprefix("captions_")
        content = _json(file)
        captions: dict[int, list[str]] = defaultdict(list)
        for row in content["annotations"]:
            captions[row["image_id"]].append(row["caption"])
        boxes = _coco_boxes(file.with_name(f"instances_{split}.json"))
        for number, row in enumerate(content["images"], 1):
            try:
                path = path_inside(folder, f"{split}/{row['file_name']}")
            except ValueError as error:
                reject(Rejection(str(file), number, f"image {row['id']}: {error}"))
                continue
            size = (row.get("width"), row.get("height"))
            own = tuple({**box, "size": size} for box in boxes.get(row["id"], ()))
            name, each = f"{split}/{row['file_name']}", captions[row["id"]]
            yield Record(name, path, captions_as_text(each), split, "coco", own, captions=tuple(each))


def from_tar_folder(folder: Path, reject: Reject = raise_rejection) -> Iterator[Record]:
    """All archives of a folder, sorted by name."""
    return from_tars(_archives(folder), reject)


def _archives(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.tar") if not is_hidden(PurePath(path.name)))


def _coco_boxes(file: Path) -> dict[int, list[dict[str, Any]]]:
    boxes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    if file.is_file():
        content = _json(file)
        names = {row["id"]: row["name"] for row in content["categories"]}
        for row in content["annotations"]:
            boxes[row["image_id"]].append({"phrase": names[row["category_id"]], "xywh": row["bbox"]})
    return boxes


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); fetch it again") from error


def _columns(file: Path, reject: Reject) -> Iterator[list[str]]:
    for line, text in enumerate(read_lines(file, reject) or [], 1):
        columns = text.split()
        if len(columns) >= 2:
            yield columns
        elif columns:
            reject(Rejection(str(file), line, f"{text!r} has one column; give a number and a value"))


def _first_folder(folder: Path, names: tuple[str, ...], what: str) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise FileNotFoundError(f"no {what} in {folder}: add one of the folders {', '.join(names)}")
