"""DAQUAR as published: questions about pictures of rooms; a line with the question, then a line with the answer."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tavq_plugin.data.read_counts import ReadCounts
from tavq_plugin.data.records import IMAGE_ENDINGS, Record, Reject, Rejection, path_inside, raise_rejection, read_lines
from tavq_plugin.data.unnamed_files import NamedFiles

_FILE = re.compile(r"qa\.(\d+)\.raw\.(train|test)\.txt")
_IMAGE = re.compile(r"\s*\b(?:(?:in|on|of|from)\s+)?(?:(?:the|this)\s+)?image\s?(\d+)\b", re.IGNORECASE)
_IMAGES = "nyu_depth_images"


def daquar_sets(folder: Path) -> dict[str, list[Path]]:
    """Set → its files: "37" has answers of 37 classes of objects, "894" of 894."""
    sets: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.glob("qa.*.raw.*.txt")):
        match = _FILE.fullmatch(file.name)
        if match:
            sets[match[1]].append(file)
    return dict(sets)


def from_daquar(
    folder: Path, reject: Reject = raise_rejection, counts: ReadCounts | None = None, *, classes: str | None = None
) -> Iterator[Record]:
    """DAQUAR: qa.37.raw.train.txt, qa.37.raw.test.txt, and the images in nyu_depth_images/ or images/.

    One record per image and split, with all its questions; "in the image3" is taken out of them. An answer of several
    objects stays one text, as published: "chair, table".

    Args:
        folder: The folder of the data set.
        reject: Called with each question without an image or an answer.
        counts: What became of the lines, and of images that none names.
        classes: "37" or "894". Default: the only set that the folder has.

    Raises:
        ValueError: The folder has several sets and none is named.
        FileNotFoundError: The folder lacks the named set.
    """
    sets = daquar_sets(folder)
    if classes is None and len(sets) != 1:
        raise ValueError(
            f"{folder} has the sets {', '.join(sets) or 'none'} of DAQUAR, whose figures do not compare: name one, "
            "from_daquar(folder, classes=...), or keep one in the folder"
        )
    classes = classes or next(iter(sets))
    if classes not in sets:
        raise FileNotFoundError(f"no qa.{classes}.raw.train.txt in {folder}: it has the sets {', '.join(sets)}")
    counts, named = counts or ReadCounts(), NamedFiles()
    for file in sorted(sets[classes], key=lambda file: "train" not in file.name):
        split = "train" if ".train." in file.name else "test"
        for number, qa in _questions(file, reject, counts).items():
            try:
                path = _image_path(folder, number)
            except ValueError as error:
                rejection = Rejection(str(file), None, f"image {number} of {len(qa)} questions: {error}")
                counts.refuse(reject, rejection, 2 * len(qa))
                continue
            named.add(path)
            counts.take(2 * len(qa))  # lines
            yield Record(f"{split}/{path.name}", path, "", split, f"daquar-{classes}", qa=tuple(qa))
    places = [base / name for base in (folder / "images", folder) for name in (_IMAGES, "")]
    named.count_others(places[:3], f"images that no row of qa.{classes}.raw.*.txt names", counts)
    counts.check(folder)


def _questions(file: Path, reject: Reject, counts: ReadCounts) -> dict[int, list[dict[str, Any]]]:
    """The questions with answers of each image, by its number."""

    def refuse(rejection: Rejection) -> None:
        counts.refuse(reject, rejection)

    lines = [(line, text.strip()) for line, text in enumerate(read_lines(file, refuse) or [], 1) if text.strip()]
    own: dict[int, list[dict[str, Any]]] = defaultdict(list)
    place = 0
    while place < len(lines):
        line, question = lines[place]
        answer = lines[place + 1][1] if place + 1 < len(lines) else ""
        match = _IMAGE.search(question)
        if match is None:  # the next line may be a question
            refuse(Rejection(str(file), line, f"{question!r} names no image; a question ends in the image3 ?"))
            place += 1
        elif not answer or _IMAGE.search(answer):
            refuse(Rejection(str(file), line, f"{question!r} has no answer in the next line; add it"))
            place += 1
        else:
            text = f"{question[: match.start()]}{question[match.end() :]}".strip()
            own[int(match[1])].append({"question": text, "answer": answer, "source": "daquar"})
            place += 2
    return own


def _image_path(folder: Path, number: int) -> Path:
    for name in (f"{place}image{number}{ending}" for place in (f"{_IMAGES}/", "") for ending in IMAGE_ENDINGS):
        try:
            return path_inside(folder, name)
        except ValueError:
            continue
    raise ValueError(f"no image{number}.png in {folder / _IMAGES}; add it")
