"""The data of a task from a user's folder: captions, boxes, questions and masks, as the project's readers read them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from tavq_plugin.data.corpus import MIN_IMAGES, left_out_records
from tavq_plugin.data.folders import ImageTextFolder
from tavq_plugin.data.images import open_image, read_image
from tavq_plugin.data.label_maps import label_classes, label_maps
from tavq_plugin.data.published import published_reader
from tavq_plugin.data.read import read_records
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.records import Record, Rejection
from tavq_plugin.data.splits import split_records
from tavq_plugin.io.counted import counted
from tavq_plugin.tasks.boxes import Box, box_in_centre_crop
from tavq_plugin.tasks.task_data import TaskData, TaskImages

OVERHANG = 1.0  # pixels by which a box may exceed its image, as annotations are rounded
Progress = Callable[[int, int], None]


def folder_data(
    folder: Path,
    *,
    resolution: int,
    n_train: int | None = None,
    n_eval: int | None = None,
    settings: ReadSettings | None = None,
    tell: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> TaskData:
    """The data of a folder: the training split to train on, the tune split held out, at most as many as asked for.

    The folder is any that `read_records` reads. Splits are those of `split_records`, so a tokenizer that was trained
    on the folder has not seen the held-out images. Images are cut to their central square, and boxes with them. Images
    that are in both splits, or show the same event, are left out, counted and told.

    Args:
        folder: Images with text.
        resolution: Pixels per side.
        n_train: Training images, at most. Default: all.
        n_eval: Held-out images, at most. Default: all of the tune split.
        settings: The fields with id and text, and the limits of what is read. Default: `ReadSettings()`.
        tell: Called with each message for the user.
        progress: Called with the number of images that are read, and of all.

    Raises:
        ValueError: A split has fewer than two images, a box is outside its image, a question is empty, or masks
            of one image have different sizes; the message names the record.
        FileNotFoundError: There is no such folder or file.
    """
    records = _records(Path(folder), tell, settings)
    train, held_out, _ = split_records(records, n_train=n_train, n_eval=n_eval)
    both = [*train, *held_out]
    notes = [_Notes(_captions(record), _boxes(record), _questions(record)) for record in both]  # refused before images
    classes = label_classes(both)
    labels = label_maps(both, classes, resolution) if classes else None
    images = torch.empty(len(both), 3, resolution, resolution, dtype=torch.uint8)
    for i, record in enumerate(both):
        images[i] = read_image(cast("Path | bytes", record.image), resolution)
        if progress is not None:
            progress(i + 1, len(both))
    names = ["train"] * len(train) + ["tune"] * len(held_out)
    left_out = left_out_records(images, both, names) if all(isinstance(r.image, Path) for r in both) else {}
    for reason, count in Counter(left_out.values()).items():
        tell(f"left out {count}: {reason}")
    rows = {name: [i for i in range(len(both)) if names[i] == name and i not in left_out] for name in ("train", "tune")}
    if min(map(len, rows.values())) < MIN_IMAGES:
        raise ValueError(
            f"{folder} gives {counted(len(rows['train']), 'images')} to train and {len(rows['tune'])} to measure on: "
            f"at least {MIN_IMAGES} of each are needed; give a folder with more images, or larger --train and --eval"
        )
    splits = [
        _task_images(images[part], [notes[i] for i in part], None if labels is None else labels[part])
        for part in rows.values()
    ]
    return TaskData(f"{folder}, {resolution} px", splits[0], splits[1], classes, _fingerprint(splits, classes))


class _Notes(NamedTuple):
    """What is written about one image."""

    captions: tuple[str, ...]
    boxes: list[dict[str, Any]]
    questions: list[dict[str, str]]


def _records(folder: Path, tell: Callable[[str], None], settings: ReadSettings | None) -> list[Record]:
    """The records with an image of a folder. Of a user's own, a broken one raises ValueError; of a published data set,
    it is left out, counted and told.
    """
    if folder.is_dir() and ((folder / "captions.jsonl").exists() or published_reader(folder) is None):
        records: Sequence[Record] = ImageTextFolder.read(folder, settings).records
    else:
        rejected: list[Rejection] = []
        records = list(read_records(folder, rejected.append, settings))
        if rejected:
            tell(f"left out {counted(len(rejected), 'broken records')}; the first: {rejected[0]}")
    return [record for record in records if record.image is not None]


def _task_images(images: Tensor, notes: Sequence[_Notes], labels: Tensor | None) -> TaskImages:
    """One split; what no image of it has is empty."""
    captions, boxes, questions = ([*each] if any(each) else () for each in zip(*notes, strict=True))
    return TaskImages(images, captions=captions, boxes=boxes, questions=questions, labels=labels)


def _captions(record: Record) -> tuple[str, ...]:
    """The captions that a reader kept apart, else the text as one."""
    each = tuple(caption.strip() for caption in record.captions if caption.strip())
    return each or ((record.text.strip(),) if record.text.strip() else ())


def _questions(record: Record) -> list[dict[str, str]]:
    """Questions with answers, as they are written. ValueError for an empty one."""
    found = []
    for pair in record.qa:
        question, answer = (str(pair.get(key) or "").strip() for key in ("question", "answer"))
        if not question or not answer:
            raise ValueError(
                f"{record.id}: {dict(pair)!r} is no question with its answer; give both, or delete this entry"
            )
        found.append({**pair, "question": question, "answer": answer})
    return found


def _boxes(record: Record) -> list[dict[str, Any]]:
    """Boxes as shares of the central square, without those that are mostly outside of it.

    A box is {"phrase", "box": [x0, y0, x1, y1] from 0 to 1}, or {"phrase", "xywh" in pixels}, perhaps with "size".
    ValueError for a box outside its image.
    """
    if not record.boxes:
        return []
    size = _image_size(record)
    count = Counter(str(box.get("phrase", "")) for box in record.boxes)
    found = []
    for box in record.boxes:
        kept = box_in_centre_crop(_whole_box(record, box, size), size)
        if kept is not None:
            phrase = str(box.get("phrase", ""))
            found.append({**box, "phrase": phrase, "box": list(kept), "unique": box.get("unique", count[phrase] == 1)})
    return found


def _image_size(record: Record) -> tuple[int, int]:
    """Width and height of a record's image as its annotations mean it."""
    for box in record.boxes:
        width, height = box.get("size") or (None, None)
        if width and height:
            return int(width), int(height)
    return open_image(cast("Path | bytes", record.image)).size


def _whole_box(record: Record, box: Mapping[str, Any], size: tuple[int, int]) -> Box:
    """A box of the whole image, clipped to it. ValueError if it is none of this image."""
    width, height = size
    try:
        if "box" in box:
            x0, y0, x1, y1 = (float(value) * side for value, side in zip(box["box"], size * 2, strict=True))
        else:
            x0, y0, w, h = map(float, box["xywh"])
            x1, y1 = x0 + w, y0 + h
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{record.id}: {dict(box)!r} is no box: give "box" (0 to 1) or "xywh" in pixels') from error
    inside = -OVERHANG <= x0 < x1 <= width + OVERHANG and -OVERHANG <= y0 < y1 <= height + OVERHANG
    if not inside:
        raise ValueError(
            f"{record.id}: the box {[round(value, 2) for value in (x0, y0, x1, y1)]} of {box.get('phrase')!r} is empty "
            f"or outside its image of {width} × {height} pixels: mend or delete it"
        )
    return Box(max(0.0, x0 / width), max(0.0, y0 / height), min(1.0, x1 / width), min(1.0, y1 / height))


def _fingerprint(splits: Sequence[TaskImages], classes: tuple[str, ...]) -> str:
    """SHA-256 of the images and all annotations."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in splits:
        digest.update(split.images.numpy().tobytes())
        digest.update(json.dumps([split.captions, split.boxes, split.questions], default=str).encode())
        if split.labels is not None:
            digest.update(split.labels.numpy().tobytes())
    return digest.hexdigest()
