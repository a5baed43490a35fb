"""A first look at the data of a store: how many texts, which records are left out, and why."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tavq_plugin.data.images import read_image
from tavq_plugin.data.read import read_records
from tavq_plugin.data.records import Rejection
from tavq_plugin.preprocessing.caption import line_of
from tavq_plugin.preprocessing.shard_captions import Captions
from tavq_plugin.text.shard_file import hashed

SHOWN = 3  # reasons in an error that no record can be read


@dataclass(frozen=True)
class Survey:
    """What a first look at the data found: what a shard holds follows from this alone."""

    texts: int  # without those left out
    left_out: frozenset[int]  # places among the readable records: a repeated id, a broken image
    rejected: bytes  # lines of rejected.jsonl
    captioners: str  # hash of the models, revisions and prompts of its texts; "" where none is named


def look(data: Path, *, check_images: bool = False, captions: Captions | None = None) -> Survey:
    """Read all records once: count them, find repeated ids and what else is left out; keeps 8 bytes a record."""
    hashes, captioners, broken = bytearray(), set(), {}
    lines: list[bytes] = []
    first_rejections: list[Rejection] = []

    def reject(rejection: Rejection) -> None:
        lines.append(line_of(rejection))
        if len(first_rejections) < SHOWN:
            first_rejections.append(rejection)

    number = -1
    for number, record in enumerate(read_records(data, reject)):
        hashes += hashed([record.id]).tobytes()
        captioners.add(record.captioner)
        if check_images and record.image is not None:
            try:
                read_image(record.image, 8)
            except ValueError as error:
                broken[number] = str(error)
                reject(Rejection(str(data), record.line or number + 1, str(error)))
    ids = np.frombuffer(hashes, dtype="<u8")
    _, first = np.unique(ids, return_index=True)
    repeated = set(np.setdiff1d(np.arange(len(ids)), first, assume_unique=True).tolist())
    if repeated:
        for number, record in enumerate(read_records(data, lambda _: None)):
            if number in repeated:
                reject(Rejection(str(data), record.line or number + 1, f"id {record.id!r} stands earlier; first kept"))
    left_out = frozenset(repeated | broken.keys())
    if len(ids) == len(left_out):
        reasons = "; ".join(map(str, first_rejections)) + ("; …" if len(lines) > SHOWN else "")
        raise ValueError(
            f"no record of {data} can be read, {len(lines)} rejected"
            + (f": {reasons}" if reasons else ": it is empty; see the kinds of input in --help")
        )
    if captions is not None:
        captioners = {json.dumps([captions.model, captions.revision, captions.prompt])}
    captioners.discard(None)
    name = hashlib.sha256("\n".join(sorted(captioners)).encode()).hexdigest()[:16]
    return Survey(len(ids) - len(left_out), left_out, b"".join(lines), f"captions-{name}" if captioners else "")
