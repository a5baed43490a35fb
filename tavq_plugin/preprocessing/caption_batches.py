"""Records with images → lines of a captions file, one batch at a time; a flawed text is asked for a second time."""

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
    flagged: int = 0  # flawed at the second attempt too: written, with the flag
    rejected: int = 0  # records without a text


@dataclass
class CaptionRun:
    """One run of one captioner over records; `write` appends the texts to a file."""

    captioner: Captioner
    source: Mapping[str, str | None]  # model, revision and prompt, which are noted beside every text
    place: str  # file or folder of the records, for the list of rejected records
    reject: Reject
    counts: CaptionCounts = field(default_factory=CaptionCounts)
    answered: bool = False  # whether the server has ever answered

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
        """Append one line per text; the lines are on the disk when this returns.

        Raises ConnectionError if the server has never answered.
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
        except ValueError as error:  # the model's processor refused one image: ask for the others alone
            return [error] if len(batch) == 1 else [text for one in batch for text in self._ask([one], attempt)]


def captions_in_file(path: Path, source: Mapping[str, str | None]) -> dict[int, int]:
    """The hash of each id in the file → the offset of its line; a last line that was cut short is removed.

    Raises ValueError if a line is no caption, or comes from another model, revision or prompt.
    """
    if not path.exists():
        return {}
    offsets: dict[int, int] = {}
    with path.open("r+b") as file:
        end = 0  # of the complete lines
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                _refuse_unlike_caption(line, f"{path}, line {number}")
                break
            try:
                row = json.loads(line)
                name, found = row["id"], {key: row.get(key) for key in source}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is no caption ({error}); correct or delete the line"
                ) from error
            if found != source:
                raise ValueError(
                    f"{path}, line {number} was written with {found}, and this run uses {source}: texts of different "
                    "models or prompts do not mix; give another --out"
                )
            offsets[id_hash(name)] = end
            end += len(line)
        file.truncate(end)
    return offsets


def _refuse_unlike_caption(cut: bytes, place: str) -> None:
    """Raise ValueError if an unfinished last line, which would be removed, is not the start of a caption."""
    begin = b'{"id": "'
    if not (cut.startswith(begin) or begin.startswith(cut)):
        raise ValueError(f"{place} is no caption and has no end; correct or delete the line, or give another --out")
