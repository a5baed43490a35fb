"""Write a file of captions, JSON lines or Parquet: one long text per image, with id, model, revision, prompt and flag.

`tavq prepare --captions FILE` reads such a file, also if another program wrote it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.records import Rejection
from tavq_plugin.io.atomic import whole_file
from tavq_plugin.io.progress import progress_bar
from tavq_plugin.preprocessing.caption_answer import Captioner
from tavq_plugin.preprocessing.caption_batches import STOP_AFTER, CaptionCounts, CaptionRun
from tavq_plugin.preprocessing.caption_todo import CaptionTodo
from tavq_plugin.preprocessing.captions_file import FIELDS, CaptionsFile, caption_settings
from tavq_plugin.preprocessing.rejections import refuse_foreign_list, rejection_line, rejections_path, write_rejections

PROMPT = "Analyze the image in a comprehensive and detailed manner."
CONTEXT = "People describe the image thus: {captions}\n"  # put before the prompt if `with_captions`


def full_prompt(prompt: str | None, with_captions: bool) -> str:
    """The prompt as written with every text; `{captions}` stands for the image's own captions.

    Raises ValueError if the prompt holds `{captions}` without `with_captions`.
    """
    prompt = PROMPT if prompt is None else prompt
    if not with_captions and "{captions}" in prompt:
        raise ValueError("the prompt holds {captions}, but the model gets no captions: add --with-captions")
    return CONTEXT + prompt if with_captions and "{captions}" not in prompt else prompt


def caption_images(
    data: str | Path,
    out: str | Path,
    captioner: Captioner,
    *,
    prompt: str | None = None,
    with_captions: bool = False,
    batch: int = 8,
    part: tuple[int, int] = (0, 1),
    limit: int | None = None,
    image_size: int | None = None,
    retry_flagged: bool = False,
    stop_after: int = STOP_AFTER,
    settings: ReadSettings | None = None,
    progress: bool = True,
    say: Callable[[str], object] = warnings.warn,
) -> CaptionCounts:
    """Write a text for every image of a folder or file; a second run continues where the first stopped.

    With every text go the captioner's settings and a hash of the image. An image that has changed gets a new text.
    Texts are on the disk as soon as they come. When the run ends, the file has them in the order of the data.

    Args:
        data: Images, in any form that `read_records` knows.
        out: The .jsonl or .parquet file to write.
        captioner: What writes the texts.
        prompt: What to ask. Default: `PROMPT`.
        with_captions: If true, the model is also given the image's own short captions.
        batch: Images per call of the captioner; their texts are on the disk before the next call. A server gets one
            image per request, and as many requests at once as its `concurrency`. Out of memory halves the batch.
        part: (i, n) asks only about the images i, i + n, i + 2n, …, as one of n jobs; each needs its own `out`.
        limit: Ask only about the first images of the data (or of the part). Default: all.
        image_size: Longest side of the images that the captioner gets, in pixels; smaller ones stay as they are.
        retry_flagged: If true, flagged texts are asked for again; the old one stays until there is a new one.
        stop_after: Failures in a row (a dead server, no memory) that stop the run; 0 never stops it.
        settings: The fields with id and text, and the limits of what is read. Default: `ReadSettings()`.
        progress: If false, no progress bar is shown.
        say: Called with a sentence that the user should read.

    Raises:
        ValueError: `out` has another ending, holds texts of another model, revision, prompt or setting, or would be
            read by the next run in place of the images; or a number is out of range.
        FileExistsError: A foreign file has the name of the list of rejected records or of the lock.
        BlockingIOError: Another run is writing the file.
        ConnectionError: A server answered none of the first requests, or failed `stop_after` times in a row.
        OSError: A model on this machine failed so, for lack of memory.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1 image, got {batch}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
    if stop_after < 0:
        raise ValueError(f"stop_after must be at least 0 failures, got {stop_after}")
    out = Path(out)
    if out.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"captions cannot be written to {out}: give --out a name that ends in .jsonl or .parquet")
    if out.resolve() == (Path(data) / "captions.jsonl").resolve():
        raise ValueError(f"the next run would read {out}, not the images of {data}: give --out another name or folder")
    if out.name.endswith(".rejected.jsonl"):
        raise ValueError(f"a name like {out} is reserved for lists of rejected records: give --out another name")
    refuse_foreign_list(rejections_path(out))
    lines = working_file(out)
    lock = Path(f"{lines}.lock")
    if lock.exists() and lock.stat().st_size:  # our lock files are empty
        raise FileExistsError(f"{lock} is in the way and is not a lock file of ours: give another --out, or move it")
    prompt = prompt if prompt is not None else getattr(captioner, "prompt", None)
    source = {
        "model": captioner.name,
        "revision": captioner.revision,
        "prompt": full_prompt(prompt, with_captions),
        "settings": caption_settings(captioner, image_size),
    }
    lines.parent.mkdir(parents=True, exist_ok=True)
    rejections: list[Rejection] = []
    counts = CaptionCounts()
    try:
        with FileLock(lock, timeout=0):
            if out != lines and out.exists() and not lines.exists():
                _from_parquet(out, lines)
            with CaptionsFile(lines, source) as file:
                run = CaptionRun(
                    captioner, file, str(data), rejections.append, counts,
                    image_size=image_size, stop_after=stop_after, say=say,
                )  # fmt: skip
                todo = CaptionTodo(
                    Path(data), file, rejections.append, counts, settings,
                    part=part, limit=limit, retry_flagged=retry_flagged,
                )  # fmt: skip
                _append_missing(run, todo, batch, progress)
            rejections.sort(key=lambda rejection: rejection.line or 0)
            write_rejections(rejections_path(out), b"".join(map(rejection_line, rejections)))
            if lines != out:
                _to_parquet(lines, out)
                lines.unlink()
    except Timeout:
        raise BlockingIOError(f"another run is writing {lines}: wait for it, or give another --out") from None
    lock.unlink(missing_ok=True)
    counts.rejected = len(rejections)
    return counts


def working_file(out: Path) -> Path:
    """The JSON lines that texts are appended to: `out` itself; for Parquet, a temporary file in its folder."""
    return out if out.suffix == ".jsonl" else out.with_name(f"{out.name}.unfinished.jsonl")


def _append_missing(run: CaptionRun, todo: CaptionTodo, batch: int, progress: bool) -> None:
    run.counts.already_written, run.answered = len(run.file.written), bool(run.file.written)
    try:
        with progress_bar(shown=progress) as bar:
            task = bar.add_task("captions", total=None, completed=len(run.file.written))
            for number in run.write(todo.records(), batch):
                bar.update(task, advance=number)
            run.first_attempt = 2  # other seeds than those that wrote the flagged texts
            for number in run.write(todo.flagged, batch):
                bar.update(task, advance=number)
        run.require_an_answer()
    finally:
        run.file.tidy(todo.order)


def _to_parquet(lines: Path, out: Path) -> None:
    """Write one row group at a time, so that memory does not grow with the file."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.string()) for name in FIELDS])

    def row(line: bytes) -> dict[str, Any]:
        found = json.loads(line)
        return {**found, "settings": json.dumps(found.get("settings"), sort_keys=True)}

    with (
        whole_file(out) as partial,
        pyarrow.parquet.ParquetWriter(partial, schema) as writer,
        lines.open("rb") as file,
    ):
        while rows := [row(line) for line in islice(file, 8192)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _from_parquet(out: Path, lines: Path) -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(out) as table, whole_file(lines) as partial, partial.open("wb") as file:
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                if row.get("settings"):
                    row["settings"] = json.loads(row["settings"])
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
