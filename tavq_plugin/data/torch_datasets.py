"""Images paired with the rows of a text store, as a torch Dataset: in any worker only images are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from tavq_plugin.data.images import read_image
from tavq_plugin.data.records import Record, refuse
from tavq_plugin.data.tars import from_tars

Prepare = Callable[[Tensor], Tensor]  # 3 r r uint8 -> the image as the tokenizer takes it


class Pairs(Dataset):
    """(image, id) of each record that has an image: 3 r r uint8, and what `store.collate` makes a row number of.

    Records come from `read_records` (folders, tables, CUB, CelebA-HQ, COCO). A broken image raises ValueError with
    its name; `tavq prepare --check-images` finds those beforehand.
    """

    def __init__(self, records: Sequence[Record], resolution: int, transform: Prepare | None = None) -> None:
        self.records = [record for record in records if record.image is not None]
        self.resolution, self.transform = resolution, transform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        record = self.records[index]
        image = read_image(record.image, self.resolution)
        return image if self.transform is None else self.transform(image), record.id


class HubPairs(Dataset):
    """The same of a Hugging Face `datasets.Dataset`; ids are its row numbers, or a column of its own."""

    def __init__(
        self,
        rows: Any,
        resolution: int,
        *,
        image: str = "image",
        id: str | None = None,
        transform: Prepare | None = None,
    ) -> None:
        missing = [column for column in (image, id) if column is not None and column not in rows.column_names]
        if missing:
            raise ValueError(f"no column {missing[0]!r} among {rows.column_names}: give image= and id=")
        self.rows, self.resolution, self.image, self.id, self.transform = rows, resolution, image, id, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        row = self.rows[index]
        try:
            image = read_image(row[self.image], self.resolution)
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from error
        image = image if self.transform is None else self.transform(image)
        return image, str(index if self.id is None else row[self.id])

    def records(self, text: str = "text") -> Iterator[Record]:
        """Its texts, for `TextStore.build` or a table for `tavq prepare`; images stay unread."""
        if text not in self.rows.column_names:
            raise ValueError(f"no column {text!r} among {self.rows.column_names}: give text=")
        columns = [text] if self.id is None else [text, self.id]
        for index, row in enumerate(self.rows.select_columns(columns)):
            yield Record(str(index if self.id is None else row[self.id]), None, row[text] or "")


class TarPairs(IterableDataset):
    """The same streamed from WebDataset archives; whole archives are shared out among a loader's workers."""

    def __init__(self, files: Sequence[str | Path], resolution: int, transform: Prepare | None = None) -> None:
        self.files, self.resolution, self.transform = sorted(map(Path, files)), resolution, transform
        if not self.files:
            raise ValueError("no archives: give at least one .tar")

    def __iter__(self) -> Iterator[tuple[Tensor, str]]:
        worker = get_worker_info()
        own = self.files if worker is None else self.files[worker.id :: worker.num_workers]
        for record in from_tars(own, refuse):
            if record.image is not None:
                image = read_image(record.image, self.resolution)
                yield image if self.transform is None else self.transform(image), record.id
