"""COCO-QA as published: questions with answers of one word, of four kinds, about COCO images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tavq_plugin.data.read_counts import ReadCounts
from tavq_plugin.data.records import Record, Reject, Rejection, path_inside, raise_rejection, read_lines
from tavq_plugin.data.unnamed_files import NamedFiles

SPLITS = ("train", "test")
KINDS = ("object", "number", "color", "location")  # by their number in types.txt
FILES = ("questions.txt", "answers.txt", "img_ids.txt", "types.txt")
_IMAGES = ("train2014/COCO_train2014_{:012}.jpg", "val2014/COCO_val2014_{:012}.jpg", "{:012}.jpg")


def is_coco_qa(folder: Path) -> bool:
    """Whether a folder has a split of COCO-QA."""
    return any(all((folder / split / name).is_file() for name in FILES) for split in SPLITS)


def from_coco_qa(folder: Path, reject: Reject = raise_rejection, counts: ReadCounts | None = None) -> Iterator[Record]:
    """COCO-QA: train/ and test/, each with questions.txt, answers.txt, img_ids.txt and types.txt; COCO's 2014 images.

    One record per image and split, with all its questions. Images are found in train2014/ and val2014/, or by their
    number alone, in the folder or its images/.

    Raises ValueError if the four files of a split have different numbers of lines.
    """
    counts, named = counts or ReadCounts(), NamedFiles()

    def refuse(rejection: Rejection, number: int = 1) -> None:
        counts.refuse(reject, rejection, number)

    for split in SPLITS:
        if not (folder / split).is_dir():
            continue
        columns = [read_lines(folder / split / name, refuse) for name in FILES]
        if any(column is None for column in columns):
            continue  # rejected above
        sizes = {name: len(column or ()) for name, column in zip(FILES, columns, strict=True)}
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(f"{folder / split}: the files have different numbers of lines ({found}); fetch them again")
        own: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for line, row in enumerate(zip(*(column or () for column in columns), strict=True), 1):
            question, answer, image, kind = (text.strip() for text in row)
            if not question or not answer:
                refuse(Rejection(str(folder / split / FILES[0]), line, "an empty question or answer; delete the line"))
            elif not image.isdigit() or not kind.isdigit() or int(kind) >= len(KINDS):
                reason = f"image {image!r} of kind {kind!r}: both must be numbers, and the kind below {len(KINDS)}"
                refuse(Rejection(str(folder / split / FILES[2]), line, reason))
            else:
                own[int(image)].append(
                    {"question": question, "answer": answer, "kind": KINDS[int(kind)], "source": "coco-qa"}
                )
        for image_id, qa in own.items():
            try:
                path = _image_path(folder, image_id)
            except ValueError as error:
                place = str(folder / split / FILES[2])
                refuse(Rejection(place, None, f"image {image_id} of {len(qa)} questions: {error}"), len(qa))
                continue
            named.add(path)
            counts.take(len(qa))
            yield Record(f"{split}/{path.name}", path, "", split, "coco-qa", qa=tuple(qa))
    places = [base / name for base in (folder / "images", folder) for name in ("train2014", "val2014")]
    named.count_others([folder / "images", *places], f"images that no row of {FILES[2]} names", counts)
    counts.check(folder)


def _image_path(folder: Path, image_id: int) -> Path:
    names = [name.format(image_id) for name in _IMAGES]
    for name in names:
        try:
            return path_inside(folder, name)
        except ValueError:
            continue
    raise ValueError(f"no file {' or '.join(map(repr, names))} in {folder}; add it, or a link to COCO's 2014 images")
