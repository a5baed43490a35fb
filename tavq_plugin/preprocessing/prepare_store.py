"""Captions → units → embeddings → store, one shard at a time; a stopped run loses at most one shard."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from filelock import FileLock, Timeout

from tavq_plugin.data.read import read_records
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.records import Record
from tavq_plugin.io.atomic import intended
from tavq_plugin.io.counted import counted
from tavq_plugin.io.progress import progress_bar
from tavq_plugin.preprocessing.ray_backend import work_on_ray
from tavq_plugin.preprocessing.rejections import REJECTED, refuse_foreign_list, write_rejections
from tavq_plugin.preprocessing.scan_records import scan_records
from tavq_plugin.preprocessing.shard_captions import ShardCaptions, all_rejections
from tavq_plugin.text.encoder import TextEncoder, offline_encoder
from tavq_plugin.text.manifest import Manifest, shard_path, shard_paths
from tavq_plugin.text.pretrained import Pooling
from tavq_plugin.text.shard_file import Shard, read_shard, shard_metadata, write_shard
from tavq_plugin.text.splitter import Splitter
from tavq_plugin.text.store import TextStore

LOCKS = ".locks"


@dataclass(frozen=True)
class PrepareResult:
    """What one run of `prepare` did."""

    texts: int  # in the whole store
    shards: int  # of the whole store
    made: int  # shards written by this run
    rejected: int  # records left out
    without_text: int  # texts that are empty; they add nothing to the loss
    skipped: str  # what was not read since it is no data, in words; "" if there is none such
    in_pieces: int  # units above the encoder's limit, encoded in pieces
    finished: bool  # False if other parts of an array job are still missing


def prepare(
    data: str | Path,
    out: str | Path,
    load_encoder: Callable[[], TextEncoder],
    *,
    splitter: Splitter | None = None,
    shard_size: int = 8192,
    part: tuple[int, int] = (0, 1),
    captions: ShardCaptions | None = None,
    check_images: bool = False,
    settings: ReadSettings | None = None,
    ray: str | None = None,
    workers: int = 2,
    progress: bool = True,
) -> PrepareResult:
    """Write the text store of a folder or file, or finish a partly written one.

    The shards' bytes depend neither on how often runs were stopped, nor on how many runs shared the work. Several runs
    may work on one folder: each locks the shard that it is making, and a killed process releases its lock.

    Args:
        data: Texts, or images, in any form that `read_records` knows.
        out: Folder of the store.
        load_encoder: Loads the text encoder; called once per process.
        splitter: Default: `Splitter()`.
        shard_size: Texts per shard.
        part: (i, n) makes only shards i, i + n, i + 2n, …, as one of n jobs.
        captions: Writes a text for each image first; images without one are rejected. Default: `data` has texts.
        check_images: If true, every image is decoded, and records with broken ones are rejected.
        settings: The fields with id and text, and the limits of what is read. Default: `ReadSettings()`.
        ray: Address of a Ray cluster, or "" to start one on this machine. Default: work in this process.
        workers: Processes on Ray.
        progress: If false, no progress bar is shown.

    Raises:
        ValueError: A setting is out of range, no record can be read, none has a text, or `out` holds another store.
        FileExistsError: `out` holds foreign files with the names of a store's files.
    """
    index, of = part
    if not 0 <= index < of:
        raise ValueError(f"part {index} of {of} does not exist: give (i, n) with i from 0 to n-1")
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1 text, got {shard_size}")
    data, out, splitter = Path(data), Path(out), splitter or Splitter()
    refuse_foreign_list(out / REJECTED)
    scan = scan_records(data, check_images=check_images, captions=captions, settings=settings)
    count = -(-scan.texts // shard_size)
    if len(shard_paths(out)) and max(int(path.stem.split("-")[1]) for path in shard_paths(out)) >= count:
        raise ValueError(
            f"{out} holds more than the {counted(count, 'shards')} of {data}, so it is another store: give a new folder"
        )
    encoder = load_encoder()
    fingerprint = "|".join(filter(None, [encoder.fingerprint, splitter.fingerprint, scan.captioners]))
    manifest = Manifest(fingerprint).write_or_check(out)
    write_rejections(out / REJECTED, scan.rejected)  # after all checks: a refused run changes no list
    own = range(index, count, of)
    digests: dict[int, str] = {}

    def unfinished(numbers: Sequence[int]) -> Iterator[tuple[int, list[Record]]]:
        for number, records in enumerate(
            _chunks(data, scan.left_out, shard_size, settings, images=captions is not None)
        ):
            path = shard_path(out, number)
            texts = records if captions is None else captions.finished_texts(records, path)
            digests[number] = records_digest(texts)
            done = is_current(path, digests[number], fingerprint) and not (captions and captions.has_failures(path))
            if number in numbers and not done:
                if manifest.shards is not None:
                    replace(manifest, shards=None, texts=None).write(out)
                yield number, records

    make = partial(process_shard, splitter=splitter, fingerprint=fingerprint, captions=captions, place=str(data))
    work = work_on_ray(ray, workers, load_encoder, make) if ray is not None else _in_this_process(encoder, make)
    made = 0
    claimed: list[int] = []
    with progress_bar(shown=progress) as bar:
        task = bar.add_task("shards", total=len(own))
        for number, done in work(unfinished(own), out, 0):
            made += done is True
            claimed += [number] * (done is None)
            bar.update(task, completed=(number - index) // of + 1)
        if claimed:  # another run is making these: wait for it, then make what it did not finish
            for _, done in work(unfinished(claimed), out, -1):
                made += done is True
        bar.update(task, completed=len(own))
    texts, rejected, without_text = scan.texts, scan.rejected, scan.without_text
    if captions is not None:
        deque(unfinished(()), maxlen=0)  # updates `digests` with the texts written by now
        rejected += all_rejections(out)
        write_rejections(out / REJECTED, rejected)
        written = [read_shard(path) for path in shard_paths(out)]
        texts, without_text = sum(len(shard.ids) for shard in written), sum(map(_without_units, written))
    finished = all(is_current(shard_path(out, number), digests.get(number, ""), fingerprint) for number in range(count))
    if finished:
        Manifest(fingerprint, count, texts).write(out)
        _remove_locks(out)
    in_pieces = sum((shard_metadata(path) or {"in_pieces": 0})["in_pieces"] for path in shard_paths(out))
    return PrepareResult(texts, count, made, rejected.count(b"\n"), without_text, scan.skipped, in_pieces, finished)


def process_shard(
    records: Sequence[Record],
    out: Path,
    encoder: TextEncoder,
    splitter: Splitter,
    fingerprint: str,
    *,
    captions: ShardCaptions | None = None,
    place: str = "",
    wait: float = 0,
) -> bool | None:
    """Write the shard of some records: True if written, False if it existed, None if another process is writing it.

    Args:
        records: Ids with texts, or with images for `captions`.
        out: File of the shard.
        encoder: Encodes the units.
        splitter: Splits the texts.
        fingerprint: The store's fingerprint, written into the shard.
        captions: Writes the texts first. Default: the records have texts.
        place: File or folder of the records, for the list of rejected images.
        wait: Seconds to wait for the other process; -1 waits without limit.
    """
    (out.parent / LOCKS).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out.parent / LOCKS / f"{out.stem}.lock", timeout=wait):
            if captions is not None:
                records = captions.complete(records, out, place)
            digest = records_digest(records)
            if is_current(out, digest, fingerprint):
                return False
            # Files of a killed process; we hold the lock, so nobody is writing them.
            for partial_file in out.parent.glob(f".{out.name}.*.tmp"):
                if intended(partial_file.name) == out.name:
                    partial_file.unlink()
            texts, ids = [record.text for record in records], [record.id for record in records]
            store = TextStore.build(texts, encoder, ids, splitter=splitter, progress=False)
            write_shard(out, replace(store, fingerprint=fingerprint).shard(records=digest))
            return True
    except Timeout:
        return None
    except FileNotFoundError:  # another run has just finished the store and removed the folder of locks
        if is_current(out, records_digest(records), fingerprint):
            return False
        raise


def records_digest(records: Sequence[Record] | None) -> str:
    """SHA-256 of the ids and texts of a shard; "" if the texts are not written yet."""
    if records is None:
        return ""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps([record.id, record.text]).encode())
    return digest.hexdigest()


def is_current(path: Path, records: str, fingerprint: str) -> bool:
    """Whether a shard is complete and was made from these records with this encoder and splitter."""
    meta = shard_metadata(path)
    return meta is not None and (meta["records"], meta["fingerprint"]) == (records, fingerprint)


def encoder_loader(
    model: str | None, revision: str | None, pooling: str | None, dtype: str, device: str | None
) -> Callable[[], TextEncoder]:
    """A function that loads the encoder; its dtype is fixed, so that every run gives the same bytes."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r} is not supported: give float32 or bfloat16")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {"dtype": getattr(torch, dtype), "device": device}
    if model is None:
        return partial(offline_encoder, **settings)
    return partial(
        TextEncoder.from_pretrained, model, revision=revision, pooling=cast(Pooling | None, pooling), **settings
    )


def parse_part(text: str) -> tuple[int, int]:
    """The part (i, n) of an array job, from "i/n".

    >>> parse_part("3/8")
    (3, 8)
    """
    index, _, of = text.partition("/")
    if not (index.isdigit() and of.isdigit()):
        raise ValueError(f"--shard {text!r} is not a part of a job: give I/N, such as 0/8 to 7/8")
    return int(index), int(of)


def _chunks(
    data: Path, left_out: frozenset[int], size: int, settings: ReadSettings | None, *, images: bool
) -> Iterator[list[Record]]:
    """Lists of `size` records; without `images`, their images (which may be bytes) are dropped."""
    records = enumerate(read_records(data, lambda _: None, settings))
    kept = (
        Record(record.id, record.image if images else None, record.text, line=record.line or number + 1)
        for number, record in records
        if number not in left_out
    )
    while chunk := list(islice(kept, size)):
        yield chunk


def _in_this_process(encoder: TextEncoder, make: Callable) -> Callable[..., Iterator[tuple[int, bool | None]]]:
    """A function that makes shards one by one; it yields each number with the result of `process_shard`."""

    def work(todo: Iterator, out: Path, wait: float) -> Iterator:
        for number, records in todo:
            yield number, make(records, shard_path(out, number), encoder, wait=wait)

    return work


def _without_units(shard: Shard) -> int:
    """How many texts of a shard have no unit."""
    lengths = torch.stack([ragged.offsets.diff() for ragged in shard.lists.values()])
    return int((lengths.sum(0) == 0).sum())


def _remove_locks(out: Path) -> None:
    """Remove the locks of a finished store; a run that still waits for one then finds its shard complete."""
    for lock in (out / LOCKS).glob("*.lock"):
        lock.unlink(missing_ok=True)
    try:
        (out / LOCKS).rmdir()
    except OSError:  # another run has just made a lock
        return
