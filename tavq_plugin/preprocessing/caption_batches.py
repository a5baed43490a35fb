"""Records with images → lines of a captions file, a batch at a time; flawed texts are asked for twice."""

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
from tavq_plugin.preprocessing.caption_quality import flaw
from tavq_plugin.preprocessing.server_captioner import ServerFailure
from tavq_plugin.text.shard_file import hashed

FIELDS = ("id", "text", "model", "revision", "prompt", "flag")


class Captioner(Protocol):
    """What writes texts: `LocalCaptioner`, `ServerCaptioner`, or one of your own."""

    name: str
    revision: str | None

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str], attempt: int = 0) -> Sequence[Any]:
        """One text an image, or a ServerFailure."""


@dataclass
class Captioned:
    """What one run did."""

    written: int = 0
    there: int = 0  # written by a former run
    retried: int = 0  # empty, refused or repeating at first
    flagged: int = 0  # still so at the second attempt: written, with the flag
    rejected: int = 0


@dataclass
class Asking:
    """One run's questions to one captioner."""

    captioner: Captioner
    about: Mapping[str, str | None]  # model, revision, prompt: written with every text
    place: str  # of the records, for what is rejected
    reject: Reject
    done: Captioned = field(default_factory=Captioned)
    answered: bool = False  # False while a server has answered nothing at all

    def opened(self, records: Iterable[Record]) -> Iterator[tuple[Record, Image.Image]]:
        """Each record with its image; one without a readable image is rejected."""
        for record in records:
            try:
                if record.image is None:
                    raise ValueError("no image; give one to describe")
                yield record, open_image(record.image)
            except ValueError as error:
                self._reject(record, error)

    def write(self, batch: Sequence[tuple[Record, Image.Image]], lines: BinaryIO) -> None:
        """A line a text, on the disk when this returns; ConnectionError where a server never answered."""
        texts = self._texts(batch)
        failed = [text for text in texts if isinstance(text, Exception)]
        if not self.answered and failed and len(failed) == len(texts) and isinstance(failed[0], ServerFailure):
            raise ConnectionError(f"{failed[0]}; nothing of {len(texts)} requests was answered: is it running?")
        self.answered = True
        for (record, _), text in zip(batch, texts, strict=True):
            if isinstance(text, Exception):
                self._reject(record, text)
                continue
            row = dict(zip(FIELDS, (record.id, text, *self.about.values(), flaw(text)), strict=True))
            self.done.written += 1
            self.done.flagged += row["flag"] is not None
            lines.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        lines.flush()
        os.fsync(lines.fileno())

    def _reject(self, record: Record, reason: Exception) -> None:
        self.reject(Rejection(self.place, record.line, f"{record.id}: {reason}"))

    def _texts(self, batch: Sequence[tuple[Record, Image.Image]]) -> list[Any]:
        texts = self._ask(batch, 0)
        again = [i for i, text in enumerate(texts) if isinstance(text, str) and flaw(text)]
        self.done.retried += len(again)
        for i, text in zip(again, self._ask([batch[i] for i in again], 1) if again else [], strict=True):
            texts[i] = text if isinstance(text, str) and text else texts[i]
        return texts

    def _ask(self, batch: Sequence[tuple[Record, Image.Image]], attempt: int) -> list[Any]:
        if not batch:
            return []
        images = [image for _, image in batch]
        prompts = [self.about["prompt"].replace("{captions}", record.text or "-") for record, _ in batch]
        try:
            return list(self.captioner(images, prompts, attempt))
        except ValueError as error:  # one image that the model's processor refuses must not cost the others
            return [error] if len(batch) == 1 else [text for one in batch for text in self._ask([one], attempt)]


def written(lines: Path, about: Mapping[str, str | None]) -> dict[int, int]:
    """Hashes of the ids that a former run wrote, and where the line begins; a line that a kill cut short goes.

    ValueError where a line is no caption, or of another model, revision or prompt.
    """
    if not lines.exists():
        return {}
    there: dict[int, int] = {}
    with lines.open("r+b") as file:
        whole = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                _refuse_unlike_caption(line, f"{lines}, line {number}")
                break
            try:
                row = json.loads(line)
                name, found = row["id"], {key: row.get(key) for key in about}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{lines}, line {number}: no caption ({error}); mend or delete the line") from error
            if found != about:
                raise ValueError(
                    f"{lines}, line {number} is of {found}, this run of {about}: texts of different models or prompts "
                    "do not mix; give another --out"
                )
            there[int(hashed([name])[0])] = whole
            whole += len(line)
        file.truncate(whole)
    return there


def _refuse_unlike_caption(cut: bytes, place: str) -> None:
    """ValueError where a last line without an end is no beginning of a line that we write, which would go."""
    begin = b'{"id": "'
    if not (cut.startswith(begin) or begin.startswith(cut)):
        raise ValueError(f"{place}: no caption, and the line has no end; mend or delete it, or give another --out")
