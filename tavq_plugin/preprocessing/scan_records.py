"""One pass over the data of a store: how many texts it has, which records are left out, and why."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tavq_plugin.data.images import read_image
from tavq_plugin.data.read import read_records, without_text_reason
from tavq_plugin.data.read_counts import ReadCounts
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.records import Rejection
from tavq_plugin.preprocessing.rejections import rejection_line
from tavq_plugin.preprocessing.shard_captions import ShardCaptions
from tavq_plugin.text.shard_file import id_hashes

_REASONS_SHOWN = 3  # in the error for data without a readable record


@dataclass(frozen=True)
class RecordScan:
    """What one pass over the data found; this alone decides what each shard holds."""

    texts: int  # number of texts kept
    left_out: frozenset[int]  # positions, among the readable records, of repeated ids and broken images
    rejected: bytes  # lines of rejected.jsonl
    without_text: int  # number of texts kept that are empty; they align with nothing
    skipped: str  # what was not read since it is no data, such as system files, in words
    captioners: str  # hash of the models, revisions and prompts that wrote the texts; "" if the data names none


def scan_records(
    data: Path,
    *,
    check_images: bool = False,
    captions: ShardCaptions | None = None,
    settings: ReadSettings | None = None,
) -> RecordScan:
    """Count the records, and find repeated ids and broken images; a record takes 9 bytes of memory.

    Raises ValueError if no record can be read, or if none has a text and `captions` writes none.
    """
    hashes, broken = bytearray(), set()
    captioners: set[str] = set()
    lines: list[bytes] = []
    first_rejections: list[Rejection] = []

    def reject(rejection: Rejection) -> None:
        lines.append(rejection_line(rejection))
        if len(first_rejections) < _REASONS_SHOWN:
            first_rejections.append(rejection)

    counts, empty, fields = ReadCounts(), bytearray(), dict[str, None]()
    for number, record in enumerate(read_records(data, reject, settings, counts)):
        empty.append(not record.text)
        fields |= dict.fromkeys(record.fields)
        hashes += id_hashes([record.id]).tobytes()
        captioners |= {record.captioner} if record.captioner is not None else set()
        if check_images and record.image is not None:
            try:
                read_image(record.image, 8)
            except ValueError as error:
                broken.add(number)
                reject(Rejection(str(data), record.line or number + 1, str(error)))
    ids = np.frombuffer(hashes, dtype="<u8")
    _, first = np.unique(ids, return_index=True)
    repeated = set(np.setdiff1d(np.arange(len(ids)), first, assume_unique=True).tolist())
    if repeated:
        for number, record in enumerate(read_records(data, lambda _: None, settings)):
            if number in repeated:
                reason = (
                    f"id {record.id!r} appears twice; the first record is kept. Rows of one image are joined if they "
                    "follow each other"
                )
                reject(Rejection(str(data), record.line or number + 1, reason))
    left_out = frozenset(repeated | broken)
    if len(ids) == len(left_out):
        reasons = "; ".join(map(str, first_rejections)) + ("; …" if len(lines) > _REASONS_SHOWN else "")
        raise ValueError(
            f"no record of {data} can be read, {len(lines)} rejected"
            + (f": {reasons}" if reasons else ": it is empty; see the kinds of input in --help")
        )
    without_text = sum(empty) - sum(empty[number] for number in left_out)
    if captions is None and without_text == len(ids) - len(left_out):
        raise ValueError(without_text_reason(data, without_text, fields, settings))
    if captions is not None:
        settings_of_texts = [json.dumps(captions.settings, sort_keys=True)] if captions.settings else []
        captioners = {json.dumps([captions.model, captions.revision, captions.prompt, *settings_of_texts])}
    name = hashlib.sha256("\n".join(sorted(captioners)).encode()).hexdigest()[:16]
    return RecordScan(
        texts=len(ids) - len(left_out),
        left_out=left_out,
        rejected=b"".join(lines),
        without_text=without_text,
        skipped=counts.told(),
        captioners=f"captions-{name}" if captioners else "",
    )
