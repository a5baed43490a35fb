"""Ask a captioner for the texts of images, one batch at a time, and append them to a captions file.

A flawed text is asked for once more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from PIL import Image

from tavq_plugin.data.images import open_image
from tavq_plugin.data.records import Record, Reject, Rejection
from tavq_plugin.preprocessing.caption_quality import caption_flaw
from tavq_plugin.preprocessing.server_captioner import ServerFailure
from tavq_plugin.text.shard_file import id_hash

FIELDS = ("id", "text", "model", "revision", "prompt", "flag")


class Captioner(Protocol):
    """Writes texts for images: `LocalCaptioner`, `ServerCaptioner`, or your own."""

    name: str
    revision: str | None

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str], attempt: int = 0) -> Sequence[Any]:
        """One text per image, or a ServerFailure in its place."""


@dataclass
class CaptionCounts:
    """What one run did, in numbers of texts."""

    written: int = 0
    already_written: int = 0  # by an earlier run
    retried: int = 0  # asked for again, because the first text was empty, a refusal or repeating
    flagged: int = 0  # still flawed after the second attempt; written with the flag
    rejected: int = 0  # records without a text


@dataclass
class CaptionRun:
    """One run of one captioner over records; `write` appends the texts to a file."""

    captioner: Captioner
    source: Mapping[str, str | None]  # model, revision and prompt, written with every text
    place: str  # file or folder of the records, for the list of rejected records
    reject: Reject
    counts: CaptionCounts = field(default_factory=CaptionCounts)
    answered: bool = False  # whether any request was ever answered

    def with_images(self, records: Iterable[Record]) -> Iterator[tuple[Record, Image.Image]]:
        """Each record with its image; records without a readable image are rejected."""
        for record in records:
            try:
                if record.image is None:
                    raise ValueError("the record has no image: give one to describe")
                yield record, open_image(record.image)
            except ValueError as error:
                self._reject(record, error)

    def write(self, batch: Sequence[tuple[Record, Image.Image]], lines: BinaryIO) -> None:
        """Append one line per text, synced to the disk.

        Raises ConnectionError if no request was ever answered.
        """
        texts = self._texts(batch)
        failed = [text for text in texts if isinstance(text, Exception)]
        if not self.answered and failed and len(failed) == len(texts) and isinstance(failed[0], ServerFailure):
            raise ConnectionError(f"{failed[0]}; none of {len(texts)} requests was answered: is the server running?")
        self.answered = True
        for (record, _), text in zip(batch, texts, strict=True):
            if isinstance(text, Exception):
                self._reject(record, text)
                continue
            row = dict(zip(FIELDS, (record.id, text, *self.source.values(), caption_flaw(text)), strict=True))
            self.counts.written += 1
            self.counts.flagged += row["flag"] is not None
            lines.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        lines.flush()
        os.fsync(lines.fileno())

    def _reject(self, record: Record, reason: Exception) -> None:
        self.reject(Rejection(self.place, record.line, f"{record.id}: {reason}"))

    def _texts(self, batch: Sequence[tuple[Record, Image.Image]]) -> list[Any]:
        texts = self._ask(batch, 0)
        again = [i for i, text in enumerate(texts) if isinstance(text, str) and caption_flaw(text)]
        self.counts.retried += len(again)
        for i, text in zip(again, self._ask([batch[i] for i in again], 1) if again else [], strict=True):
            texts[i] = text if isinstance(text, str) and text else texts[i]
        return texts

    def _ask(self, batch: Sequence[tuple[Record, Image.Image]], attempt: int) -> list[Any]:
        if not batch:
            return []
        images = [image for _, image in batch]
        prompts = [(self.source["prompt"] or "").replace("{captions}", record.text or "-") for record, _ in batch]
        try:
            return list(self.captioner(images, prompts, attempt))
        except ValueError as error:  # the processor refused an image of the batch: ask for one at a time
            return [error] if len(batch) == 1 else [text for one in batch for text in self._ask([one], attempt)]


def captions_in_file(path: Path, source: Mapping[str, str | None]) -> dict[int, int]:
    """Hash of each id in the file → offset of its line; an incomplete last line is removed from the file.

    Raises ValueError if a line is not a caption, or comes from another model, revision or prompt.
    """
    if not path.exists():
        return {}
    offsets: dict[int, int] = {}
    with path.open("r+b") as file:
        end = 0  # of the complete lines
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                _require_caption_start(line, f"{path}, line {number}")
                break
            try:
                row = json.loads(line)
                name, found = row["id"], {key: row.get(key) for key in source}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is not a caption ({error}); correct or delete the line"
                ) from error
            if found != source:
                raise ValueError(
                    f"{path}, line {number} was written with {found}, but this run uses {source}: texts of different "
                    "models or prompts do not mix; give another --out"
                )
            offsets[id_hash(name)] = end
            end += len(line)
        file.truncate(end)
    return offsets


def _require_caption_start(cut: bytes, place: str) -> None:
    """Raise ValueError if an incomplete last line is not the start of a caption, and so must not be removed."""
    begin = b'{"id": "'
    if not (cut.startswith(begin) or begin.startswith(cut)):
        raise ValueError(
            f"{place} is not a caption and has no line end; correct or delete the line, or give another --out"
        )
