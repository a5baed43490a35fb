"""Captions → units → embeddings → store, shard by shard: stopped anywhere, at most the shard in hand is lost."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tavq_plugin.data.read import read_records
from tavq_plugin.data.records import Record
from tavq_plugin.io.atomic import intended
from tavq_plugin.preprocessing import shard_captions as captioned
from tavq_plugin.preprocessing.caption import REJECTED, refuse_other_report, report
from tavq_plugin.preprocessing.scan_records import look
from tavq_plugin.preprocessing.shard_captions import Captions
from tavq_plugin.text import shard_file as shards
from tavq_plugin.text.encoder import TextEncoder, offline_encoder
from tavq_plugin.text.manifest import Manifest, shard_path, shard_paths
from tavq_plugin.text.splitter import Splitter
from tavq_plugin.text.store import TextStore

LOCKS = ".locks"


@dataclass(frozen=True)
class Prepared:
    """What one run did."""

    texts: int  # in the whole store
    shards: int  # of the whole store
    made: int  # shards, by this run
    rejected: int
    in_pieces: int  # distinct units of its shards that are longer than the encoder's limit, encoded in pieces
    finished: bool  # False: other parts of an array job are still to come


def prepare(
    data: str | Path,
    out: str | Path,
    load_encoder: Callable[[], TextEncoder],
    *,
    splitter: Splitter | None = None,
    shard_size: int = 8192,
    part: tuple[int, int] = (0, 1),
    captions: Captions | None = None,
    check_images: bool = False,
    ray: str | None = None,
    workers: int = 2,
    progress: bool = True,
) -> Prepared:
    """Write, or finish, the store of a folder or file that `read_records` knows.

    `captions`: a long text of every image is asked for first, shard by shard; an image without one is rejected.
    `part=(i, n)`: only every n-th shard from the i-th, as one of n jobs. `ray`: an address, or "" for a Ray of
    this machine; `workers` processes share the shards. The shards are the same, byte for byte, whichever way.
    Two runs on one folder share the work: a shard is claimed by a lock, which a killed process gives up.
    """
    index, of = part
    if not 0 <= index < of:
        raise ValueError(f"part {index} of {of}: give 0 to n-1 of n")
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1 text, got {shard_size}")
    data, out, splitter = Path(data), Path(out), splitter or Splitter()
    refuse_other_report(out / REJECTED)
    survey = look(data, check_images=check_images, captions=captions)
    count = -(-survey.texts // shard_size)
    if len(shard_paths(out)) and max(int(path.stem.split("-")[1]) for path in shard_paths(out)) >= count:
        raise ValueError(f"{out} holds more than the {count} shards of {data}: it is another store; give a new folder")
    encoder = load_encoder()
    fingerprint = "|".join(filter(None, [encoder.fingerprint, splitter.fingerprint, survey.captioners]))
    manifest = Manifest(fingerprint).begin(out)
    report(out / REJECTED, survey.rejected)  # only now: a refused run leaves another store's report as it is
    own = range(index, count, of)
    digests: dict[int, str] = {}

    def unfinished(numbers: Sequence[int]) -> Iterator[tuple[int, list[Record]]]:
        for number, records in enumerate(_chunks(data, survey.left_out, shard_size, images=captions is not None)):
            path = shard_path(out, number)
            digests[number] = digest(records) if captions is None else digest(captions.found(records, path))
            there = whole(path, digests[number], fingerprint) and not (captions and captions.wanting(path))
            if number in numbers and not there:
                if manifest.shards is not None:
                    replace(manifest, shards=None, texts=None).write(out)
                yield number, records

    make = partial(process_shard, splitter=splitter, fingerprint=fingerprint, captions=captions, place=str(data))
    work = _with_ray(ray, workers, load_encoder, make) if ray is not None else _here(encoder, make)
    made, claimed = 0, []
    columns = (TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("", total=len(own))
        for number, done in work(unfinished(own), out, 0):
            made += done is True
            claimed += [number] * (done is None)
            bar.update(task, completed=(number - index) // of + 1)
        if claimed:  # by another run: wait for it, and do what it leaves
            for _, done in work(unfinished(claimed), out, -1):
                made += done is True
        bar.update(task, completed=len(own))
    texts, rejected = survey.texts, survey.rejected
    if captions is not None:
        deque(unfinished(()), maxlen=0)  # digests of the texts that there are now
        rejected += captioned.reports(out)
        report(out / REJECTED, rejected)
        texts = sum(len(shards.read(path).ids) for path in shard_paths(out))
    finished = all(whole(shard_path(out, number), digests.get(number, ""), fingerprint) for number in range(count))
    if finished:
        Manifest(fingerprint, count, texts).write(out)
        _forget_locks(out)
    in_pieces = sum((shards.metadata(path) or {"in_pieces": 0})["in_pieces"] for path in shard_paths(out))
    return Prepared(texts, count, made, rejected.count(b"\n"), in_pieces, finished)


def process_shard(
    records: Sequence[Record],
    out: Path,
    encoder: TextEncoder,
    splitter: Splitter,
    fingerprint: str,
    *,
    captions: Captions | None = None,
    place: str = "",
    wait: float = 0,
) -> bool | None:
    """Write the shard of some records; False: it is there already, None: another process is writing it.

    `wait`: seconds to wait for that process, -1 for ever. `place` of the records: for images that are rejected.
    """
    (out.parent / LOCKS).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out.parent / LOCKS / f"{out.stem}.lock", timeout=wait):
            if captions is not None:
                records = captions.ask(records, out, place)
            name = digest(records)
            if whole(out, name, fingerprint):
                return False
            for left in out.parent.glob(f".{out.name}.*.tmp"):  # of a killed process: the lock says nobody writes it
                if intended(left.name) == out.name:
                    left.unlink()
            store = TextStore.build(
                [record.text for record in records],
                encoder,
                [record.id for record in records],
                splitter=splitter,
                progress=False,
            )
            shards.write(out, replace(store, fingerprint=fingerprint).shard(records=name))
            return True
    except Timeout:
        return None
    except FileNotFoundError:  # the folder of locks has gone: another run has just finished the store
        if whole(out, digest(records), fingerprint):
            return False
        raise


def digest(records: Sequence[Record] | None) -> str:
    """What a shard is made of: ids and texts; None, not yet known, is like nothing."""
    if records is None:
        return ""
    found = hashlib.sha256()
    for record in records:
        found.update(json.dumps([record.id, record.text]).encode())
    return found.hexdigest()


def whole(path: Path, records: str, fingerprint: str) -> bool:
    """Whether a shard is there, is not truncated, and was made of these records in this way."""
    meta = shards.metadata(path)
    return meta is not None and (meta["records"], meta["fingerprint"]) == (records, fingerprint)


def encoder_of(
    model: str | None, revision: str | None, pooling: str | None, dtype: str, device: str | None
) -> Callable[[], TextEncoder]:
    """How each process loads the encoder; the dtype is fixed, so that every run gives the same bytes."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r}: float32 or bfloat16")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {"dtype": getattr(torch, dtype), "device": device}
    if model is None:
        return partial(offline_encoder, **settings)
    return partial(TextEncoder.from_pretrained, model, revision=revision, pooling=pooling, **settings)


def part_of(text: str) -> tuple[int, int]:
    """Which part of an array job.

    >>> part_of("3/8")
    (3, 8)
    """
    index, _, of = text.partition("/")
    if not (index.isdigit() and of.isdigit()):
        raise ValueError(f"--shard {text!r}: give I/N, as 0/8 to 7/8")
    return int(index), int(of)


def _chunks(data: Path, left_out: frozenset[int], size: int, *, images: bool) -> Iterator[list[Record]]:
    """Ids and texts; images, which archives hold as bytes, are kept and sent on only where they are to be described."""
    records = enumerate(read_records(data, lambda _: None))
    kept = (
        Record(record.id, record.image if images else None, record.text, line=record.line or number + 1)
        for number, record in records
        if number not in left_out
    )
    while chunk := list(islice(kept, size)):
        yield chunk


def _here(encoder: TextEncoder, make: Callable) -> Callable[..., Iterator[tuple[int, bool | None]]]:
    def work(todo: Iterator, out: Path, wait: float) -> Iterator:
        for number, records in todo:
            yield number, make(records, shard_path(out, number), encoder, wait=wait)

    return work


def _with_ray(address: str, workers: int, load_encoder: Callable[[], TextEncoder], make: Callable) -> Callable:
    from tavq_plugin.preprocessing.ray_backend import work_on_ray

    return work_on_ray(address, workers, load_encoder, make)


def _forget_locks(out: Path) -> None:
    """Nothing is left to claim in a finished store; whoever still waits finds its shard whole."""
    for lock in (out / LOCKS).glob("*.lock"):
        lock.unlink(missing_ok=True)
    try:
        (out / LOCKS).rmdir()
    except OSError:  # another run has just made one
        return
