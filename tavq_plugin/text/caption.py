"""Long text an image, as a file: one JSON object a line, or Parquet, of id, text, model, revision, prompt, flag.

Anyone's captioner can write such a file; `tavq prepare --data FILE` reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout
from PIL import Image
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tavq_plugin.data.images import open_image
from tavq_plugin.data.records import Record, Rejection, read_records
from tavq_plugin.text.quality import flaw
from tavq_plugin.text.server import ServerFailure
from tavq_plugin.text.shards import hashed, whole_or_not

PROMPT = "Analyze the image in a comprehensive and detailed manner."
CONTEXT = "People describe the image thus: {captions}\n"  # before the prompt, with `with_captions`
FIELDS = ("id", "text", "model", "revision", "prompt", "flag")
REJECTED = "rejected.jsonl"


class Captioner(Protocol):
    """What writes texts: `LocalCaptioner`, `ServerCaptioner`, or one of your own."""

    name: str
    revision: str | None

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str], attempt: int = 0) -> Sequence[Any]:
        """One text an image, or a ServerFailure."""


@dataclass
class Captioned:
    """What one run did."""

    written: int = 0
    there: int = 0  # written by a former run
    retried: int = 0  # empty, refused or repeating at first
    flagged: int = 0  # still so at the second attempt: written, with the flag
    rejected: int = 0


def caption(
    data: str | Path,
    out: str | Path,
    captioner: Captioner,
    *,
    prompt: str = PROMPT,
    with_captions: bool = False,
    batch: int = 8,
    progress: bool = True,
) -> Captioned:
    """Write a text for every image of a folder or file; a second run goes on where the first stopped.

    `with_captions` gives an image's own short captions to the model. ValueError where `out` holds texts of another
    model, revision or prompt; ConnectionError where a server has answered nothing at all.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1 image, got {batch}")
    out = Path(out)
    if out.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{out}: captions are written as .jsonl or .parquet")
    if out.resolve() == (Path(data) / "captions.jsonl").resolve():
        raise ValueError(f"{out} would hide the images of {data} from the next run: give --out another name or folder")
    if not with_captions and "{captions}" in prompt:
        raise ValueError("the prompt names {captions}: give --with-captions too")
    if with_captions and "{captions}" not in prompt:
        prompt = CONTEXT + prompt
    lines = out if out.suffix == ".jsonl" else out.with_name(f"{out.name}.unfinished.jsonl")
    lines.parent.mkdir(parents=True, exist_ok=True)
    about = {"model": captioner.name, "revision": captioner.revision, "prompt": prompt}
    try:
        with FileLock(f"{lines}.lock", timeout=0):
            done = _Run(Path(data), about, captioner, batch).into(lines, _written(out, lines, about), progress)
            if lines != out and lines.exists():
                _to_parquet(lines, out)
                lines.unlink()
    except Timeout:
        raise BlockingIOError(f"another run is writing {lines}: wait for it, or give another --out") from None
    Path(f"{lines}.lock").unlink(missing_ok=True)
    return done


@dataclass
class _Run:
    data: Path
    about: dict[str, Any]
    captioner: Captioner
    size: int

    def into(self, file: Path, there: set[int], progress: bool) -> Captioned:
        done = Captioned(there=len(there))
        rejections: list[Rejection] = []
        answered = bool(there)
        columns = (TextColumn("captions"), MofNCompleteColumn(), TextColumn("in"), TimeElapsedColumn())
        with file.open("ab") as lines, Progress(*columns, disable=not progress) as bar:
            task = bar.add_task("", total=None, completed=len(there))
            todo = self._todo(there, rejections.append)
            while chunk := list(islice(todo, self.size)):
                texts = self._texts(chunk, done)
                failed = [text for text in texts if isinstance(text, Exception)]
                if not answered and len(failed) == len(texts) and isinstance(failed[0], ServerFailure):
                    raise ConnectionError(f"{failed[0]}; nothing of {len(texts)} requests was answered: is it running?")
                answered = True
                for (number, record, _), text in zip(chunk, texts, strict=True):
                    if isinstance(text, Exception):
                        rejections.append(Rejection(str(self.data), record.line or number, f"{record.id}: {text}"))
                        continue
                    row = dict(zip(FIELDS, (record.id, text, *self.about.values(), flaw(text)), strict=True))
                    done.written += 1
                    done.flagged += row["flag"] is not None
                    lines.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                lines.flush()
                os.fsync(lines.fileno())
                bar.update(task, advance=len(chunk))
        done.rejected = len(rejections)
        report = file.with_name(REJECTED)
        if rejections:
            rows = [json.dumps(r._asdict(), ensure_ascii=False).encode("utf-8", "replace") + b"\n" for r in rejections]
            whole_or_not(report, b"".join(rows))
        else:
            report.unlink(missing_ok=True)
        return done

    def _todo(self, there: set[int], reject: Callable) -> Iterator[tuple[int, Record, Image.Image]]:
        """Records without a text in the file, with their image; each id once."""
        seen = set(there)
        met: set[int] = set()
        for number, record in enumerate(read_records(self.data, reject), 1):
            name = int(hashed([record.id])[0])
            if name in met:
                reject(Rejection(str(self.data), record.line or number, f"id {record.id!r} stands earlier; first kept"))
            elif name not in seen:
                try:
                    if record.image is None:
                        raise ValueError("no image; give one to describe")
                    yield number, record, open_image(record.image)
                except ValueError as error:
                    reject(Rejection(str(self.data), record.line or number, f"{record.id}: {error}"))
            met.add(name)

    def _texts(self, chunk: list[tuple[int, Record, Image.Image]], done: Captioned) -> list[Any]:
        texts = self._ask(chunk, 0)
        again = [i for i, text in enumerate(texts) if isinstance(text, str) and flaw(text)]
        done.retried += len(again)
        for i, text in zip(again, self._ask([chunk[i] for i in again], 1) if again else [], strict=True):
            texts[i] = text if isinstance(text, str) and text else texts[i]
        return texts

    def _ask(self, chunk: list[tuple[int, Record, Image.Image]], attempt: int) -> list[Any]:
        images = [image for *_, image in chunk]
        prompts = [self.about["prompt"].replace("{captions}", record.text or "-") for _, record, _ in chunk]
        try:
            return list(self.captioner(images, prompts, attempt))
        except ValueError as error:  # one image that the model's processor refuses must not cost the others
            return [error] if len(chunk) == 1 else [text for one in chunk for text in self._ask([one], attempt)]


def _written(out: Path, lines: Path, about: dict[str, Any]) -> set[int]:
    """Hashes of the ids that a former run wrote; a last line that a kill cut short is taken away."""
    if out != lines and out.exists() and not lines.exists():
        _from_parquet(out, lines)
    if not lines.exists():
        return set()
    there: set[int] = set()
    with lines.open("r+b") as file:
        whole = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                row = json.loads(line)
                name, found = row["id"], {key: row.get(key) for key in about}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{lines}, line {number}: no caption ({error}); mend or delete the line") from error
            if found != about:
                raise ValueError(
                    f"{lines}, line {number} is of {found}, this run of {about}: texts of different models or prompts "
                    "do not mix; give another --out"
                )
            there.add(int(hashed([name])[0]))
        file.truncate(whole)
    return there


def _to_parquet(lines: Path, out: Path) -> None:
    """Row group by row group; whole or not there."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.string()) for name in FIELDS])
    unfinished = out.with_name(f".{out.name}.tmp")
    try:
        with pyarrow.parquet.ParquetWriter(unfinished, schema) as writer, lines.open("rb") as file:
            while rows := [json.loads(line) for line in islice(file, 8192)]:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)


def _from_parquet(out: Path, lines: Path) -> None:
    import pyarrow.parquet

    unfinished = lines.with_name(f".{lines.name}.tmp")
    with pyarrow.parquet.ParquetFile(out) as table, unfinished.open("wb") as file:
        for batch in table.iter_batches(batch_size=1024):
            file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in batch.to_pylist())
    os.replace(unfinished, lines)
