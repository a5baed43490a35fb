"""Torch datasets of images with the ids of their texts; workers read images only, never texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from tavq_plugin.data.images import read_image
from tavq_plugin.data.records import Record, raise_rejection
from tavq_plugin.data.tars import from_tars
from tavq_plugin.text.text_id import text_id

Transform = Callable[[Tensor], Tensor]  # 3 r r uint8 -> the tokenizer's input


class ImageDataset(Dataset):
    """The image (3 r r uint8) and id of each record that has an image; `store.collate` turns ids into row numbers.

    A broken image raises ValueError with its name; `tavq prepare --check-images` finds broken images beforehand.

    Args:
        records: From `read_records` (folders, tables, CUB, CelebA-HQ, COCO).
        resolution: Side of the images, r.
        transform: Applied to each image. Default: none.
    """

    def __init__(self, records: Sequence[Record], resolution: int, transform: Transform | None = None) -> None:
        self.records = [record for record in records if record.image is not None]
        self.resolution, self.transform = resolution, transform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        record = self.records[index]
        image = read_image(cast("Path | bytes", record.image), self.resolution)
        return image if self.transform is None else self.transform(image), record.id


class HubImageDataset(Dataset):
    """The images and ids of a Hugging Face `datasets.Dataset`.

    Args:
        rows: The `datasets.Dataset`.
        resolution: Side of the images, r.
        image: Name of the column of images.
        id: Name of the column of ids. Default: the ids are the row numbers.
        transform: Applied to each image. Default: none.
    """

    def __init__(
        self,
        rows: Any,
        resolution: int,
        *,
        image: str = "image",
        id: str | None = None,
        transform: Transform | None = None,
    ) -> None:
        missing = [column for column in (image, id) if column is not None and column not in rows.column_names]
        if missing:
            raise ValueError(f"no column {missing[0]!r} among {rows.column_names}: give image= and id=")
        feature = (getattr(rows, "features", None) or {}).get(image)
        if getattr(feature, "decode", False):  # `datasets` would decode an image of any size, before it is looked at
            rows = rows.cast_column(image, cast(Any, type(feature))(decode=False))
        self.rows, self.resolution, self.image, self.id, self.transform = rows, resolution, image, id, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        row = self.rows[index]
        try:
            image = read_image(_file_or_bytes(row[self.image]), self.resolution)
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from error
        image = image if self.transform is None else self.transform(image)
        return image, text_id(index if self.id is None else row[self.id])

    def records(self, text: str = "text") -> Iterator[Record]:
        """Its texts as records, for `TextStore.build` or a table for `tavq prepare`; images are not read."""
        if text not in self.rows.column_names:
            raise ValueError(f"no column {text!r} among {self.rows.column_names}: give text=")
        columns = [text] if self.id is None else [text, self.id]
        for index, row in enumerate(self.rows.select_columns(columns)):
            yield Record(text_id(index if self.id is None else row[self.id]), None, row[text] or "")


def _file_or_bytes(value: Any) -> Any:
    """The bytes of an image, or else its file's name, from what `datasets` stores; other values as they are."""
    if not isinstance(value, Mapping):
        return value
    found = value.get("bytes") or value.get("path")
    if found is None:
        raise ValueError(f"no image: {value!r:.60} has neither bytes nor a path")
    return found


class TarImageDataset(IterableDataset):
    """Images and ids streamed from WebDataset archives; processes and their workers share them archive by archive.

    Ids are those that `tavq prepare` gives the same archives: "ARCHIVE/KEY" for several, "KEY" for one.

    Args:
        files: All archives, the same list in every process.
        resolution: Side of the images, r.
        transform: Applied to each image. Default: none.
        part: (i, n): read only the i-th of n shares of the archives, counted from 0. Default: the process's share, if
            torch.distributed is initialised. Give (0, 1) if something else divides the batches among processes, such
            as `accelerate` with `dispatch_batches`.
        archive_in_ids: Whether ids name the archive. Default: if there are several.

    Raises:
        ValueError: No archive is given, two have the same name, or there are fewer than shares.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        resolution: int,
        transform: Transform | None = None,
        *,
        part: tuple[int, int] | None = None,
        archive_in_ids: bool | None = None,
    ) -> None:
        self.files, self.resolution, self.transform = sorted(map(Path, files)), resolution, transform
        if not self.files:
            raise ValueError("files is empty: give at least one .tar")
        if len({file.name for file in self.files}) < len(self.files):
            raise ValueError("two archives have the same name, so their ids would be equal: rename one")
        self.part = part
        self.archive_in_ids = len(self.files) > 1 if archive_in_ids is None else archive_in_ids
        self.files_of_process()

    def files_of_process(self) -> list[Path]:
        """The archives that this process reads."""
        index, of = self.part or _share()
        if not 0 <= index < of or of > len(self.files):
            raise ValueError(
                f"share {index} of {of} of {len(self.files)} archives has none: give at least one archive per process"
            )
        return self.files[index::of]

    def __getstate__(self) -> dict[str, Any]:
        """A worker that is started anew does not know the process group: it gets the share."""
        return {**self.__dict__, "part": self.part or _share()}

    def __iter__(self) -> Iterator[tuple[Tensor, str]]:
        worker, own = get_worker_info(), self.files_of_process()
        if worker is not None:
            own = own[worker.id :: worker.num_workers]
        for record in from_tars(own, raise_rejection, archive_in_ids=self.archive_in_ids):
            if record.image is not None:
                image = read_image(record.image, self.resolution)
                yield image if self.transform is None else self.transform(image), record.id


def _share() -> tuple[int, int]:
    """The rank of this process and the number of processes; (0, 1) without torch.distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
