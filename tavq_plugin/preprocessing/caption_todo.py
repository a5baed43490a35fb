"""Which images still need a text: those without one, changed ones, and flagged ones if asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tavq_plugin.data.read import read_records
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.records import Record, Reject, Rejection
from tavq_plugin.preprocessing.caption_batches import CaptionCounts
from tavq_plugin.preprocessing.captions_file import CaptionsFile, image_sha256
from tavq_plugin.text.shard_file import id_hash


@dataclass
class CaptionTodo:
    """The records of a folder or file that one run asks about.

    Args:
        data: Images, in any form that `read_records` knows.
        file: The texts so far.
        reject: Called with each record that cannot be read, and with repeated ids.
        counts: What was done so far; a text that is asked for again no longer counts as written.
        settings: The fields with id and text, and the limits of what is read.
        part: (i, n) takes the images i, i + n, i + 2n, …, as one of n jobs.
        limit: Only so many images, from the first one. Default: all.
        retry_flagged: If true, flagged texts are asked for again.

    Raises:
        ValueError: `part` or `limit` is out of range.
    """

    data: Path
    file: CaptionsFile
    reject: Reject
    counts: CaptionCounts
    settings: ReadSettings | None = None
    part: tuple[int, int] = (0, 1)
    limit: int | None = None
    retry_flagged: bool = False
    order: dict[int, int] = field(default_factory=dict, init=False)  # place of each id in the data
    flagged: list[Record] = field(default_factory=list, init=False)  # to ask for again; known after `records`

    def __post_init__(self) -> None:
        index, of = self.part
        if not 0 <= index < of:
            raise ValueError(f"part {index} of {of} does not exist: give I/N with I from 0 to N-1")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 image, got {self.limit}")

    def records(self) -> Iterator[Record]:
        """Those without a text, or with a text of another image; `flagged` collects the others."""
        before, (index, of), taken = dict(self.file.written), self.part, 0
        for number, record in enumerate(read_records(self.data, self.reject, self.settings), 1):
            line, name = record.line or number, id_hash(record.id)
            if name in self.order:
                reason = f"id {record.id!r} appears twice; the first record is kept"
                self.reject(Rejection(str(self.data), line, reason))
                continue
            self.order[name] = place = len(self.order)
            if place % of != index:
                continue
            taken += 1
            written = before.get(name)
            if written is None:
                yield replace(record, line=line)
            elif written.image is not None and image_sha256(record.image) not in (None, written.image):
                self.counts.already_written -= 1
                yield replace(record, line=line)
            elif written.flagged and self.retry_flagged:
                self.counts.already_written -= 1
                self.flagged.append(replace(record, line=line))
            if taken == self.limit:
                return
