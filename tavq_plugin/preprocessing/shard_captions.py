"""Write captions while a store is prepared, in one file per shard: `OUT/captions/shard-00007.jsonl`.

The files look like those of `caption_images`. A batch always holds the same images, so stopping and resuming changes
neither the texts nor the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from tavq_plugin.data.records import Record, Rejection
from tavq_plugin.data.tables import from_table
from tavq_plugin.io.atomic import save_bytes
from tavq_plugin.preprocessing.caption import full_prompt
from tavq_plugin.preprocessing.caption_answer import Captioner
from tavq_plugin.preprocessing.caption_batches import CaptionRun, is_asked_singly
from tavq_plugin.preprocessing.captions_file import CaptionsFile, WrittenCaption, captions_in_file, image_sha256
from tavq_plugin.preprocessing.rejections import rejection_line
from tavq_plugin.text.shard_file import id_hash

FOLDER = "captions"


@dataclass
class ShardCaptions:
    """Writes the captions of one shard at a time; each process loads the model when it first needs it.

    Args:
        load: Loads the captioner.
        model: Name written with every text.
        revision: Revision written with every text. Default: none.
        prompt: What to ask. Default: `caption.PROMPT`.
        with_captions: If true, the model is also given the image's own short captions.
        batch: Images per call of the captioner.
        settings: The captioner's settings, written with every text; `image_size`, if it is there, is applied here.

    Raises:
        ValueError: `batch` is below 1, or the prompt holds `{captions}` without `with_captions`.
    """

    load: Callable[[], Captioner]
    model: str
    revision: str | None = None
    prompt: str | None = None
    with_captions: bool = False
    batch: int = 8
    settings: Mapping[str, Any] = field(default_factory=dict)
    _captioner: Captioner | None = field(default=None, init=False, repr=False)
    _answered: bool = field(default=False, init=False, repr=False)  # whether any request was answered

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1 image, got {self.batch}")
        self.prompt = full_prompt(self.prompt, self.with_captions)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_captioner": None}

    @property
    def source(self) -> dict[str, Any]:
        """Model, revision, prompt and settings, which are written with every text."""
        settings = dict(self.settings)
        return {"model": self.model, "revision": self.revision, "prompt": self.prompt, "settings": settings}

    def finished_texts(self, records: Sequence[Record], shard: Path) -> list[Record] | None:
        """Ids and texts of a shard; None until the model was asked about all its images, as they are now."""
        file, rejected = _files(shard)
        if not rejected.exists() or _with_changed_image(records, captions_in_file(file, self.source)):
            return None
        return _texts(records, file)

    def has_failures(self, shard: Path) -> bool:
        """Whether an image of the shard got no text; another run then asks again."""
        rejected = _files(shard)[1]
        return rejected.exists() and rejected.stat().st_size > 0

    def complete(self, records: Sequence[Record], shard: Path, place: str) -> list[Record]:
        """Ask for the missing texts of a shard; return its ids and texts, without images that got no text.

        Raises ValueError if the shard has texts of another model or prompt, and ConnectionError if the server never
        answers.
        """
        file, rejected = _files(shard)
        file.parent.mkdir(parents=True, exist_ok=True)
        batches = [records[i : i + self.batch] for i in range(0, len(records), self.batch)]
        written = captions_in_file(file, self.source)
        changed = _with_changed_image(records, written)
        rejections: list[Rejection] = []
        if changed or len(written) < len(records):
            if self._captioner is None:
                self._captioner = self.load()
            singly = is_asked_singly(self._captioner)
            if not rejected.exists() and not singly:  # the earlier run was stopped, perhaps inside a batch
                _keep_complete_batches(batches, written, file)
            with CaptionsFile(file, self.source) as lines:
                answered = bool(lines.written) or self._answered
                run = CaptionRun(self._captioner, lines, place, rejections.append, answered=answered)
                run.image_size = self.settings.get("image_size")
                done = lines.written.keys() - changed
                todo = [[record for record in batch if id_hash(record.id) not in done] for batch in batches]
                try:
                    for part in [list(chain.from_iterable(todo))] if singly else todo:
                        for _ in run.write(part, self.batch):
                            pass
                    run.require_an_answer()
                finally:
                    self._answered = run.answered
                    lines.tidy({id_hash(record.id): i for i, record in enumerate(records)})
        rejections.sort(key=lambda rejection: rejection.line or 0)
        save_bytes(rejected, b"".join(map(rejection_line, rejections)))  # an empty file: every image has a text
        return _texts(records, file)


def all_rejections(out: Path) -> bytes:
    """The lists of rejected images of all shards, as lines of `rejected.jsonl`."""
    return b"".join(path.read_bytes() for path in sorted((out / FOLDER).glob("*.rejected.jsonl")))


def _files(shard: Path) -> tuple[Path, Path]:
    """A shard's files: captions, and rejected images."""
    folder = shard.parent / FOLDER
    return folder / f"{shard.stem}.jsonl", folder / f"{shard.stem}.rejected.jsonl"


def _texts(records: Sequence[Record], file: Path) -> list[Record]:
    texts = {record.id: record.text for record in from_table(file)} if file.exists() else {}
    return [Record(record.id, None, texts[record.id]) for record in records if record.id in texts]


def _with_changed_image(records: Sequence[Record], written: Mapping[int, WrittenCaption]) -> set[int]:
    """Hashes of the ids whose image is no longer the one that was described."""
    names = ((id_hash(record.id), record.image) for record in records)
    return {
        name
        for name, image in names
        if name in written and written[name].image and image_sha256(image) not in (None, written[name].image)
    }


def _keep_complete_batches(batches: Sequence[Sequence[Record]], written: dict[int, WrittenCaption], file: Path) -> None:
    """Remove the lines of an incomplete last batch from the file."""
    for batch in reversed(batches):
        found = [written[name].offset for name in (id_hash(record.id) for record in batch) if name in written]
        if len(found) == len(batch):
            return
        if found:
            with file.open("r+b") as lines:
                lines.truncate(min(found))
            return
