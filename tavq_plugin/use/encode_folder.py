"""A folder of images to files of tokens: in shards, resumable, with every image accounted for."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from tavq_plugin.data.images import open_image, read_image
from tavq_plugin.data.read import read_records
from tavq_plugin.data.read_counts import ReadCounts
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.records import IMAGE_ENDINGS, Record, Rejection
from tavq_plugin.evaluation.encoded_images import codebook_sizes
from tavq_plugin.io.atomic import read_json, save_json, writable
from tavq_plugin.io.ownership import claim
from tavq_plugin.preprocessing.rejections import REJECTED, rejection_line, write_rejections
from tavq_plugin.side_effects import eval_without_trace
from tavq_plugin.use.encode_batch import encode_batch
from tavq_plugin.use.run import Run
from tavq_plugin.use.token_files import FORMATS, read_tokens_file, write_tokens

MAKER = "tavq encode"
MANIFEST = "tokens.json"
Progress = Callable[[int], None]


@dataclass(frozen=True)
class EncodeSettings:
    """How a folder is encoded."""

    format: str = "safetensors"  #: or "parquet"
    levels: str = "all"  #: or "final", the level that the decoder reads, alone
    shard_size: int = 4096  #: images of a file, at most
    batch_size: int = 64  #: images per pass of the encoder
    workers: int = 2  #: threads that read images

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format={self.format!r}: give {' or '.join(FORMATS)}")
        if self.levels not in ("all", "final"):
            raise ValueError(f"levels={self.levels!r}: give all or final")
        for name in ("shard_size", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass
class EncodedFolder:
    """What became of each image: `images` = `encoded` + the rejected ones."""

    images: int = 0  #: records with an image that were read
    encoded: int = 0
    resized: int = 0  #: of the encoded, those of another size than the run's
    kept: int = 0  #: of the encoded, those that an earlier call had encoded
    rejected: list[Rejection] = field(default_factory=list)  #: broken records and images
    files: list[str] = field(default_factory=list)


class _Picture(NamedTuple):
    record: Record
    pixels: Tensor | None  # 3 r r uint8; None: it could not be read
    resized: bool
    reason: str  # why it could not


def encode_folder(
    run: Run,
    images: Path,
    out: Path,
    settings: EncodeSettings | None = None,
    *,
    reading: ReadSettings | None = None,
    tell: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> EncodedFolder:
    """Encode the images of a folder, table, archive or file into shards in `out`; give the same call again to resume.

    Args:
        run: Its tokenizer encodes, on its own device.
        images: In any form that `read_records` reads, or one image file. Sized as the run's recipe says.
        out: The folder of the shards, tokens.json and, if records were rejected, rejected.jsonl.
        settings: Default: `EncodeSettings()`.
        reading: How records are read. Default: `ReadSettings()`.
        tell: Called with each message for the user.
        progress: Called with the number of images that are encoded so far.

    Raises:
        ValueError: No image could be read, or the folder holds tokens of another run, other images or settings.
        FileNotFoundError: There is no such folder or file.
        FileExistsError: A file that `tavq encode` did not write is in the way.
        FloatingPointError: The codes are not finite.
    """
    settings = settings or EncodeSettings()
    ending = FORMATS[settings.format]
    about = {
        "fingerprint": run.fingerprint, "run": run.name, "seed": run.seed, "resolution": run.recipe.resolution,
        "levels": settings.levels, "shard_size": settings.shard_size,
    }  # fmt: skip
    done, ids, broken = EncodedFolder(), set[str](), list[Rejection]()
    records = _records(images, broken, reading)
    claim(writable(out), (f"tokens-*{ending}", MANIFEST, REJECTED), MAKER)
    (out / MANIFEST).unlink(missing_ok=True)  # written last: a folder that has it is whole
    for number in range(10**9):
        path = out / f"tokens-{number:05d}{ending}"
        if path.is_file():
            _keep(path, about, records, ids, done)
        else:
            shard = list(islice(records, settings.shard_size))
            if not shard:
                break
            _encode_shard(run, path, shard, about, settings, ids, done, progress)
        done.files.append(path.name)
        if progress is not None:
            progress(done.encoded)
    done.rejected = [*broken, *done.rejected]
    write_rejections(out / REJECTED, b"".join(map(rejection_line, done.rejected)))
    if not done.encoded:
        first = f": {done.rejected[0]}" if done.rejected else ""
        raise ValueError(
            f"no image of {images} could be encoded{first}; give a folder of images, a table or an archive"
        )
    if done.resized:
        side = run.recipe.resolution
        tell(
            f"{done.resized:,} of {done.encoded:,} images had another size than {side} × {side}: the shorter side was "
            "resized and the centre cropped, as in the run's training"
        )
    counts = {"images": done.images, "encoded": done.encoded, "rejected": len(done.rejected), "resized": done.resized}
    save_json(out / MANIFEST, {**about, **counts, "files": done.files})
    return done


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """What tokens.json says; None if there is none, as for a folder that is not finished."""
    content = read_json(folder / MANIFEST)
    return content if isinstance(content, dict) and "fingerprint" in content else None


def _records(place: Path, broken: list[Rejection], reading: ReadSettings | None) -> Iterator[Record]:
    """Every record with an image; broken ones are listed in `broken`."""
    if place.is_file() and place.suffix.lower() in IMAGE_ENDINGS:
        return iter([Record(place.name, place, "")])
    return read_records(place, broken.append, reading, ReadCounts(), images=True)


def _keep(path: Path, about: dict[str, Any], records: Iterator[Record], ids: set[str], done: EncodedFolder) -> None:
    """Count a shard that an earlier call wrote, and skip its records. ValueError if they are others."""
    shard = read_tokens_file(path)
    for name, value in about.items():
        if shard.about.get(name) != value:
            raise ValueError(
                f"{path} holds tokens with {name}={str(shard.about.get(name))[:12]}, and this call asks for "
                f"{str(value)[:12]}: give another --out, or delete the folder"
            )
    names = [record.id for record in islice(records, shard.about["records"])]
    if _digest(names) != shard.about["sha256_of_ids"]:
        raise ValueError(f"{path} holds the tokens of other images than come now: give another --out")
    ids.update(names)
    done.images += len(names)
    done.encoded += len(shard.ids)
    done.kept += len(shard.ids)
    done.resized += shard.about["resized"]
    done.rejected += [Rejection(*rejection) for rejection in shard.about["rejected"]]


def _encode_shard(
    run: Run,
    path: Path,
    records: list[Record],
    about: dict[str, Any],
    settings: EncodeSettings,
    ids: set[str],
    done: EncodedFolder,
    progress: Progress | None,
) -> None:
    """Encode the records and write their shard; also one without any image, so that its rejections are kept."""
    names, parts, rejected, resized = list[str](), list[list[Tensor]](), list[Rejection](), 0
    batch: list[_Picture] = []
    pictures = _pictures(records, run.recipe.resolution, settings.workers)
    with eval_without_trace(run.tokenizer):
        for position, picture in enumerate(pictures, 1):
            reason = picture.reason or ("its id is that of an image before" if picture.record.id in ids else "")
            ids.add(picture.record.id)
            if reason:
                rejected.append(Rejection(_place(picture.record), picture.record.line, reason))
            else:
                batch.append(picture)
            if len(batch) == settings.batch_size or (batch and position == len(records)):
                pixels = torch.stack([cast(Tensor, item.pixels) for item in batch])
                parts.append([level.cpu() for level in encode_batch(run.tokenizer, pixels, levels=settings.levels)])
                names += [item.record.id for item in batch]
                resized += sum(item.resized for item in batch)
                batch = []
                if progress is not None:
                    progress(done.encoded + len(names))
    joined = [torch.cat(level) for level in zip(*parts, strict=True)]
    last = len(run.tokenizer.adapter.taps) + 1
    first = last - len(joined) + 1
    sizes = codebook_sizes(run.tokenizer, max((int(level.max()) for level in joined), default=0))
    content = {
        **about, "codes": sizes, "records": len(records), "resized": resized,
        "rejected": [list(rejection) for rejection in rejected],
        "sha256_of_ids": _digest([record.id for record in records]),
    }  # fmt: skip
    write_tokens(path, names, {first + i: level for i, level in enumerate(joined)}, content)
    done.images += len(records)
    done.encoded += len(names)
    done.resized += resized
    done.rejected += rejected


def _pictures(records: list[Record], side: int, workers: int) -> Iterator[_Picture]:
    """The records with their pixels, in order, read ahead by threads."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Picture]] = deque()
        for record in records:
            waiting.append(pool.submit(_picture, record, side))
            if len(waiting) > 16 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _picture(record: Record, side: int) -> _Picture:
    try:
        opened = open_image(cast("Path | bytes", record.image))
        return _Picture(record, read_image(opened, side), opened.size != (side, side), "")
    except ValueError as error:
        return _Picture(record, None, False, str(error))


def _place(record: Record) -> str:
    return str(record.image) if isinstance(record.image, Path) else record.id


def _digest(names: list[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0".encode())
    return digest.hexdigest()
