"""RefCOCO, RefCOCO+ and RefCOCOg as published: phrases that name one object of a COCO image each."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tavq_plugin.data.coco import read_coco_json
from tavq_plugin.data.decode import decode_text
from tavq_plugin.data.read_counts import ReadCounts
from tavq_plugin.data.records import Record, Reject, Rejection, has_surrogates, path_inside, raise_rejection
from tavq_plugin.data.unnamed_files import NamedFiles
from tavq_plugin.io.legacy_pickle import read_plain_pickle

_REFS = re.compile(r"refs\((\w+)\)\.(?:p|json)")
_IMAGES = ("train2014/{}", "{}")  # where an image may be, in the folder or its images/


def refs_files(folder: Path) -> dict[str, Path]:
    """Partition → its file refs(PARTITION).p or .json; a .json comes first."""
    found = ((match[1], file) for file in sorted(folder.glob("refs(*).*")) if (match := _REFS.fullmatch(file.name)))
    files: dict[str, Path] = {}
    for partition, file in found:
        files.setdefault(partition, file)
    return files


def from_refcoco(
    folder: Path,
    reject: Reject = raise_rejection,
    counts: ReadCounts | None = None,
    *,
    partition: str | None = None,
) -> Iterator[Record]:
    """RefCOCO(+/g): refs(PARTITION).p, instances.json, and COCO's train2014 images in images/ or train2014/.

    One record per image and split, since splits of "google" share images. Each phrase is a box of its own.

    Args:
        folder: The folder of one data set, such as refcoco+.
        reject: Called with each phrase whose image, object or split is missing.
        counts: What became of the entries with phrases, and of images that none names.
        partition: "unc", "umd" or "google". Default: the only one that the folder has.

    Raises:
        ValueError: The folder has several partitions and none is named, or a file cannot be read safely.
        FileNotFoundError: The named partition or instances.json is missing.
    """
    counts = counts or ReadCounts()
    file = _refs_file(folder, partition)
    (partition,) = _REFS.fullmatch(file.name).groups()  # type: ignore[union-attr]  # the file was found by this pattern
    refs = read_plain_pickle(file) if file.suffix == ".p" else _list_in_json(file)
    instances = folder / "instances.json"
    if not instances.is_file():
        raise FileNotFoundError(f"no {instances}: it has the boxes of the phrases; it is published beside {file.name}")
    content = read_coco_json(instances, "images", "annotations")
    images = _by_id(content["images"], "file_name", str, instances, reject, counts)
    boxes = _by_id(content["annotations"], "bbox", list, instances, reject, counts)
    if not isinstance(refs, list):
        raise ValueError(f"{file}: holds {type(refs).__name__}, not a list of phrases; fetch it again")
    own: dict[tuple[str, Any], list[dict[str, Any]]] = defaultdict(list)
    entries: Counter[tuple[str, Any]] = Counter()
    named = NamedFiles()
    for number, ref in enumerate(refs, 1):
        try:
            split, found = str(ref["split"]), _boxes_of_ref(ref, images, boxes)
        except (KeyError, TypeError, ValueError) as error:
            why = str(error) if isinstance(error, ValueError) else f"it lacks {error}; fetch the file again"
            counts.refuse(reject, Rejection(str(file), number, why))
        else:
            own[split, ref["image_id"]] += found
            entries[split, ref["image_id"]] += 1
    for (split, image_id), found in own.items():
        number = entries[split, image_id]
        name = images[image_id]["file_name"]
        try:
            path = _image_path(folder, name)
        except ValueError as error:
            rejection = Rejection(str(instances), None, f"image {image_id} of {len(found)} phrases: {error}")
            counts.refuse(reject, rejection, number)
            continue
        named.add(path)
        counts.take(number)
        source = f"{folder.name} ({partition})"
        yield Record(f"{split}/{name}", path, "", split, source, _without_repeats(found))
    places = [base / place for base in (folder / "images", folder) for place in ("", "train2014")]
    named.count_others([*places[:2], places[3]], f"images that no row of {file.name} names", counts)
    counts.check(folder)


def _by_id(
    rows: Sequence[Any], value: str, kind: type, file: Path, reject: Reject, counts: ReadCounts
) -> dict[Any, dict[str, Any]]:
    """Rows by their id; one without an id or a value is rejected. The others count with the phrases that name them."""
    found = {}
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict) and isinstance(row.get("id"), int) and isinstance(row.get(value), kind):
            found[row["id"]] = row
        else:
            reason = f"{str(row)[:80]} needs an 'id' and a {value!r}; fetch the file again"
            counts.refuse(reject, Rejection(str(file), number, reason))
    return found


def _refs_file(folder: Path, partition: str | None) -> Path:
    files = refs_files(folder)
    if partition is None and len(files) == 1:
        return next(iter(files.values()))
    if partition in files:
        return files[partition]
    names = ", ".join(map(repr, files)) or "none"
    if partition is None:
        raise ValueError(
            f"{folder} has the partitions {names}, whose figures do not compare: name one, from_refcoco(folder, "
            "partition=...), or keep one file in the folder"
        )
    raise FileNotFoundError(f"no refs({partition}).p in {folder}, which has the partitions {names}: name one of them")


def _boxes_of_ref(
    ref: Mapping[str, Any], images: Mapping[Any, Mapping[str, Any]], boxes: Mapping[Any, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One box for each sentence of a phrase's entry; raises ValueError or KeyError for what is missing."""
    if ref["image_id"] not in images or ref["ann_id"] not in boxes:
        raise ValueError(
            f"object {ref['ann_id']} of image {ref['image_id']} is not in instances.json; fetch both files together"
        )
    image = images[ref["image_id"]]
    size = (image.get("width"), image.get("height"))
    sentences = [sentence["sent"] for sentence in ref["sentences"]]
    for sentence in sentences:
        if not isinstance(sentence, str) or not sentence.strip() or has_surrogates(sentence):
            raise ValueError(f"the phrase {sentence!r} of object {ref['ann_id']} is empty or not UTF-8; mend it")
    return [{"phrase": text, "xywh": list(boxes[ref["ann_id"]]["bbox"]), "size": size} for text in sentences]


def _without_repeats(boxes: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The boxes, each with whether its phrase names no other object of the image; a phrase said twice stays once."""
    places: dict[str, set[tuple[float, ...]]] = defaultdict(set)
    for box in boxes:
        places[box["phrase"]].add(tuple(box["xywh"]))
    kept = {(box["phrase"], tuple(box["xywh"])): box for box in boxes}
    return tuple({**box, "unique": len(places[box["phrase"]]) == 1} for box in kept.values())


def _image_path(folder: Path, name: str) -> Path:
    for place in _IMAGES:
        try:
            return path_inside(folder, place.format(name))
        except ValueError as error:
            reason = error
    raise ValueError(f"{reason}; images/ may be a link to COCO's train2014 folder")


def _list_in_json(file: Path) -> Any:
    import json

    try:
        return json.loads(decode_text(file.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); fetch it again") from error
