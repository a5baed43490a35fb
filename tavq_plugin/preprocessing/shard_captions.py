"""The texts of a store's shards, asked for while it is prepared: `OUT/captions/shard-00007.jsonl` for each shard.

The files keep the contract of `caption`. A batch holds the same images however often a run is stopped, so neither
the texts nor the shards made of them depend on that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tavq_plugin.data.records import Record, Rejection
from tavq_plugin.data.tables import from_table
from tavq_plugin.io.atomic import save_bytes
from tavq_plugin.preprocessing.caption import line_of, prompted
from tavq_plugin.preprocessing.caption_batches import Asking, Captioner, written
from tavq_plugin.text.shard_file import hashed

FOLDER = "captions"


@dataclass
class Captions:
    """How texts are asked for; sent to every process that prepares shards, where the model is loaded at first need."""

    load: Callable[[], Captioner]
    model: str
    revision: str | None = None
    prompt: str | None = None
    with_captions: bool = False
    batch: int = 8
    _captioner: Captioner | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1 image, got {self.batch}")
        self.prompt = prompted(self.prompt, self.with_captions)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_captioner": None}

    @property
    def about(self) -> dict[str, str | None]:
        """What stands beside every text."""
        return {"model": self.model, "revision": self.revision, "prompt": self.prompt}

    def found(self, records: Sequence[Record], shard: Path) -> list[Record] | None:
        """Ids and texts of a shard whose images have all been asked for; None for another."""
        file, report = _files(shard)
        return _texts(records, file) if report.exists() else None

    def wanting(self, shard: Path) -> bool:
        """Whether some image of a shard got no text: another run tries again."""
        report = _files(shard)[1]
        return report.exists() and report.stat().st_size > 0

    def ask(self, records: Sequence[Record], shard: Path, place: str) -> list[Record]:
        """Ids and texts of a shard, asked for where a former run left them out; what fails is rejected, and absent.

        ValueError where the shard has texts of another model or prompt; ConnectionError where no server answers.
        """
        file, report = _files(shard)
        file.parent.mkdir(parents=True, exist_ok=True)
        batches = [records[i : i + self.batch] for i in range(0, len(records), self.batch)]
        there = written(file, self.about)
        if not report.exists():  # stopped, perhaps inside a batch
            _drop_part_of_a_batch(batches, there, file)
        rejections: list[Rejection] = []
        if len(there) < len(records):
            if self._captioner is None:
                self._captioner = self.load()
            asking = Asking(self._captioner, self.about, place, rejections.append, answered=bool(there))
            with file.open("ab") as lines:
                for batch in batches:
                    if opened := list(asking.opened(r for r in batch if _name(r) not in there)):
                        asking.write(opened, lines)
        save_bytes(report, b"".join(map(line_of, rejections)))  # empty where every image has its text
        return _texts(records, file)


def reports(out: Path) -> bytes:
    """What all shards' images were rejected for, as lines of `rejected.jsonl`."""
    return b"".join(path.read_bytes() for path in sorted((out / FOLDER).glob("*.rejected.jsonl")))


def _files(shard: Path) -> tuple[Path, Path]:
    folder = shard.parent / FOLDER
    return folder / f"{shard.stem}.jsonl", folder / f"{shard.stem}.rejected.jsonl"


def _texts(records: Sequence[Record], file: Path) -> list[Record]:
    texts = {record.id: record.text for record in from_table(file)} if file.exists() else {}
    return [Record(record.id, None, texts[record.id]) for record in records if record.id in texts]


def _drop_part_of_a_batch(batches: Sequence[Sequence[Record]], there: dict[int, int], file: Path) -> None:
    for batch in reversed(batches):
        found = [name for name in map(_name, batch) if name in there]
        if found:
            if len(found) < len(batch):
                with file.open("r+b") as lines:
                    lines.truncate(min(there[name] for name in found))
                for name in found:
                    del there[name]
            return


def _name(record: Record) -> int:
    return int(hashed([record.id])[0])
