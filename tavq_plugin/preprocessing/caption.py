"""Long text an image, as a file: one JSON object a line, or Parquet, of id, text, model, revision, prompt, flag.

Anyone's captioner can write such a file; `tavq prepare --captions FILE` reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from filelock import FileLock, Timeout
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tavq_plugin.data.read import read_records
from tavq_plugin.data.records import Record, Rejection
from tavq_plugin.io.atomic import save_bytes, whole_file
from tavq_plugin.preprocessing.caption_batches import FIELDS, Asking, Captioned, Captioner, written
from tavq_plugin.text.shard_file import hashed

PROMPT = "Analyze the image in a comprehensive and detailed manner."
CONTEXT = "People describe the image thus: {captions}\n"  # before the prompt, with `with_captions`
REJECTED = "rejected.jsonl"  # in the folder of a store, which is that store's alone; see `report_beside` of captions


def prompted(prompt: str | None, with_captions: bool) -> str:
    """The prompt that is kept with every text; `{captions}` in it marks the place of an image's own captions.

    ValueError where the prompt names captions that are not to be given.
    """
    prompt = prompt or PROMPT
    if not with_captions and "{captions}" in prompt:
        raise ValueError("the prompt names {captions}: give --with-captions too")
    return CONTEXT + prompt if with_captions and "{captions}" not in prompt else prompt


def caption(
    data: str | Path,
    out: str | Path,
    captioner: Captioner,
    *,
    prompt: str | None = None,
    with_captions: bool = False,
    batch: int = 8,
    progress: bool = True,
) -> Captioned:
    """Write a text for every image of a folder or file; a second run goes on where the first stopped.

    `with_captions` gives an image's own short captions to the model. ValueError where `out` holds texts of another
    model, revision or prompt; FileExistsError where something else has the name of its list of rejected
    records (`report_beside`); ConnectionError where a server has answered nothing at all.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1 image, got {batch}")
    out = Path(out)
    if out.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{out}: captions are written as .jsonl or .parquet")
    if out.resolve() == (Path(data) / "captions.jsonl").resolve():
        raise ValueError(f"{out} would hide the images of {data} from the next run: give --out another name or folder")
    if out.name.endswith(".rejected.jsonl"):
        raise ValueError(f"{out} is the name of a list of rejected records: give --out another name")
    refuse_other_report(report_beside(out))
    lock = Path(f"{lines_of(out)}.lock")
    if lock.exists() and lock.stat().st_size:  # a lock of ours is empty
        raise FileExistsError(f"{lock} is in the way and is no lock of ours: give another --out, or move it")
    about = {"model": captioner.name, "revision": captioner.revision, "prompt": prompted(prompt, with_captions)}
    lines = lines_of(out)
    lines.parent.mkdir(parents=True, exist_ok=True)
    rejections: list[Rejection] = []
    asking = Asking(captioner, about, str(data), rejections.append)
    try:
        with FileLock(lock, timeout=0):
            if out != lines and out.exists() and not lines.exists():
                _from_parquet(out, lines)
            _into(lines, asking, Path(data), batch, progress)
            report(report_beside(out), b"".join(map(line_of, rejections)))
            if lines != out:
                _to_parquet(lines, out)
                lines.unlink()
    except Timeout:
        raise BlockingIOError(f"another run is writing {lines}: wait for it, or give another --out") from None
    lock.unlink(missing_ok=True)
    asking.done.rejected = len(rejections)
    return asking.done


def lines_of(out: Path) -> Path:
    """The file that texts are written to one by one: `out` itself, or one beside it where that is Parquet."""
    return out if out.suffix == ".jsonl" else out.with_name(f"{out.name}.unfinished.jsonl")


def report_beside(out: Path) -> Path:
    """Where the records stand that a file of captions leaves out: beside it, named for it alone.

    >>> report_beside(Path("captions.jsonl")).name, report_beside(Path("captions.parquet")).name
    ('captions.rejected.jsonl', 'captions.parquet.rejected.jsonl')
    """
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.{REJECTED}")


def refuse_other_report(file: Path) -> None:
    """FileExistsError where the place of a report holds something else."""
    if not os.path.lexists(file):
        return
    try:
        with file.open("rb") as lines:
            first = next(lines, None)
        if first is None or json.loads(first).keys() == set(Rejection._fields):
            return
    except (OSError, ValueError, AttributeError):
        pass
    raise FileExistsError(f"{file} is in the way and is no list of rejected records: give another --out, or move it")


def report(file: Path, lines: bytes) -> None:
    """Write what was left out, one JSON object a line; no file where that is nothing."""
    refuse_other_report(file)
    if lines:
        save_bytes(file, lines)
    else:
        file.unlink(missing_ok=True)


def line_of(rejection: Rejection) -> bytes:
    r"""One line of a list of rejected records.

    >>> line_of(Rejection("a.csv", 3, "no id"))
    b'{"file": "a.csv", "line": 3, "reason": "no id"}\n'
    """
    return json.dumps(rejection._asdict(), ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _into(file: Path, asking: Asking, data: Path, batch: int, progress: bool) -> None:
    there = set(written(file, asking.about))
    asking.done.there, asking.answered = len(there), bool(there)
    columns = (TextColumn("captions"), MofNCompleteColumn(), TextColumn("in"), TimeElapsedColumn())
    with file.open("ab") as lines, Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("", total=None, completed=len(there))
        todo = asking.opened(_without_text(data, there, asking))
        while chunk := list(islice(todo, batch)):
            asking.write(chunk, lines)
            bar.update(task, advance=len(chunk))


def _without_text(data: Path, there: set[int], asking: Asking) -> Iterator[Record]:
    """Records without a text in the file; each id once."""
    met: set[int] = set()
    for number, record in enumerate(read_records(data, asking.reject), 1):
        name = int(hashed([record.id])[0])
        if name in met:
            line = record.line or number
            asking.reject(Rejection(asking.place, line, f"id {record.id!r} stands earlier; first kept"))
        elif name not in there:
            yield replace(record, line=record.line or number)
        met.add(name)


def _to_parquet(lines: Path, out: Path) -> None:
    """Row group by row group; whole or not there."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.string()) for name in FIELDS])
    with (
        whole_file(out) as partial,
        pyarrow.parquet.ParquetWriter(partial, schema) as writer,
        lines.open("rb") as file,
    ):
        while rows := [json.loads(line) for line in islice(file, 8192)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _from_parquet(out: Path, lines: Path) -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(out) as table, whole_file(lines) as partial, partial.open("wb") as file:
        for batch in table.iter_batches(batch_size=1024):
            file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in batch.to_pylist())
