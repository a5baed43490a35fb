"""`tavq encode`, `decode`, `words`, `show` and `export`: they parse, call and print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tavq_plugin.cli.console import BROKEN, LEFT_OUT, console_for, print_json, report_errors
from tavq_plugin.cli.options import AllowInRun, AsJson, Debug, Device
from tavq_plugin.io.counted import counted
from tavq_plugin.io.progress import progress_bar

if TYPE_CHECKING:
    from tavq_plugin.use.run import Run

NOTHING_FOUND = BROKEN  # exit code: nothing is above chance, or every plan is nearly uniform
FEW = 20  # codes that `tavq words RUN` lists

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or one of tavq export.")]
RunOption = Annotated[Path, typer.Option("--run", metavar="RUN", help="The folder of a run, or one of tavq export.")]
HeldOutData = Annotated[
    Path | None, typer.Option(help="Images with texts, as for prepare. Default: those that the run was trained on.")
]


def encode(
    images: Annotated[Path, typer.Argument(help="A folder, a table or an archive of images, or one image file.")],
    run: RunOption,
    out: Annotated[Path, typer.Option(help="Folder for the files of tokens.")],
    format: Annotated[str, typer.Option(help="safetensors or parquet.")] = "safetensors",
    levels: Annotated[str, typer.Option(help="all, or final: the level that the decoder reads, alone.")] = "all",
    shard_size: Annotated[int, typer.Option(min=1, help="Images of a file, at most.")] = 4096,
    batch: Annotated[int, typer.Option(min=1, help="Images per pass of the encoder.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read images.")] = 2,
    id_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Field with the id. Default: id, else the image's name.")
    ] = None,
    device: Device = None,
    allow: AllowInRun = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Turn images into tokens: ids and the indices of each level, in safetensors or Parquet files.

    Images of another size than the run's are resized as in its training, and counted. Give the same command again to
    resume. Exit code 3: finished, but some images could not be read; rejected.jsonl lists them.
    """
    with _command(as_json, debug, f"The files so far are in {out}") as (console, tell):
        from tavq_plugin.data.read_settings import ReadSettings
        from tavq_plugin.use.encode_folder import EncodeSettings, encode_folder

        settings = EncodeSettings(format, levels, shard_size, batch, workers)
        loaded = _load(run, None, device, allow, tell)
        with _progress(console, "encoding") as progress:
            done = encode_folder(
                loaded, images, out, settings, reading=ReadSettings(id_field=id_field), tell=tell, progress=progress
            )
    if as_json:
        print_json({
            "images": done.images, "encoded": done.encoded, "resized": done.resized, "kept": done.kept,
            "rejected": len(done.rejected), "files": [str(out / name) for name in done.files],
        })  # fmt: skip
    else:
        console.print(f"{counted(done.encoded, 'images')} encoded, {len(done.rejected):,} left out", highlight=False)
        if done.rejected:
            console.print(f"the first: {done.rejected[0]}", markup=False, highlight=False, soft_wrap=True)
        console.print(
            f"written: {out}, {counted(len(done.files), 'files')}", markup=False, highlight=False, soft_wrap=True
        )
    if done.rejected:
        raise typer.Exit(LEFT_OUT)


def decode(
    tokens: Annotated[Path, typer.Argument(help="A folder of tavq encode, or one of its files.")],
    run: RunOption,
    out: Annotated[Path, typer.Option(help="Folder for the images, PNG.")],
    batch: Annotated[int, typer.Option(min=1, help="Images per pass of the decoder.")] = 32,
    device: Device = None,
    allow: AllowInRun = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Turn tokens back into images, by the decoder of the run that encoded them."""
    with _command(as_json, debug, f"The images so far are in {out}") as (console, tell):
        from tavq_plugin.use.decode_folder import decode_folder

        loaded = _load(run, None, device, allow, tell)
        with _progress(console, "decoding") as progress:
            number = decode_folder(loaded, tokens, out, batch_size=batch, progress=progress)
    if as_json:
        print_json({"images": number, "out": str(out)})
    else:
        console.print(f"written: {counted(number, 'images')} in {out}", markup=False, highlight=False, soft_wrap=True)


def words(
    run: RunArgument,
    code: Annotated[int | None, typer.Option(min=0, help="Show the words of this code.")] = None,
    word: Annotated[str | None, typer.Option(help="Show the codes of this word.")] = None,
    level: Annotated[int, typer.Option(min=1, help="Level of the codes; 1 is the finest.")] = 1,
    top: Annotated[int, typer.Option(min=1, help="Rows, at most.")] = 10,
    data: HeldOutData = None,
    device: Device = None,
    allow: AllowInRun = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what codes mean: the words in the texts of their held-out images, beside what chance gives.

    Without --code and --word, the best word of each code above chance is shown. Exit code 1: nothing is above chance.
    """
    with _command(as_json, debug, "Nothing was written") as (console, tell):
        if code is not None and word is not None:
            raise ValueError("--code and --word: give one of the two")
        loaded = _load(run, data, device, allow, tell)
        of_level = loaded.level_words(level)
        if code is not None:
            found = of_level.of_code(code, top)
        elif word is not None:
            found = of_level.of_word(word, top)
        else:
            best = (of_level.of_code(number, 1) for number in range(len(of_level.evidence.code_images)))
            found = sorted((row for rows in best for row in rows if row.above_chance), key=lambda row: -row.information)
    evidence = of_level.evidence
    above = [row for row in found if row.above_chance]
    if as_json:
        print_json({
            "level": level, "held_out_images": evidence.images, "words": len(of_level.vocabulary),
            "codes": len(evidence.code_images), "codes_in_use": int((evidence.code_images > 0).sum()),
            "rows": [row._asdict() for row in found],
        })  # fmt: skip
    else:
        if code is not None:
            console.print(
                f"code {code} of level {level} is in {int(evidence.code_images[code])} of {evidence.images} images",
                highlight=False,
            )
        _print_words(console, found[: top if code is not None or word is not None else FEW])
        if code is None and word is None:
            console.print(
                f"{len(above)} of {len(evidence.code_images)} codes of level {level} have a word above chance, on "
                f"{evidence.images} held-out images; of codes without any meaning, 1 in 20 would",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
        elif not above:
            console.print("nothing is above chance", highlight=False)
    if not above:
        raise typer.Exit(NOTHING_FOUND)


def show(
    run: RunArgument,
    image: Annotated[Path, typer.Argument(help="An image file; sized as the run's recipe says.")],
    text: Annotated[str, typer.Argument(help="A sentence or more, in English.")],
    out: Annotated[Path | None, typer.Option(help="Draw a picture with a heat map for each unit, PNG.")] = None,
    data: HeldOutData = None,
    device: Device = None,
    allow: AllowInRun = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show where the transport plan places each word, phrase and sentence of your text in your image.

    Exit code 1: every plan is nearly uniform, which says nothing about a place.
    """
    with _command(as_json, debug, "Nothing was written") as (console, tell):
        if out is not None and out.suffix.lower() != ".png":
            raise ValueError(f"--out {out}: give a name that ends in .png")
        if out is not None and out.exists() and out.resolve() == image.resolve():
            raise ValueError(f"--out {out} is the image itself: give another name")
        loaded = _load(run, data, device, allow, tell)
        grounding = loaded.ground(image, text)
        if out is not None:
            from tavq_plugin.use.ground_picture import draw_grounding

            draw_grounding(grounding, out)
    uniform = all(bool(level.near_uniform.all()) for level in grounding.levels)
    if as_json:
        levels = [
            {
                "level": level.level, "granularity": level.granularity, "grid": list(level.plan.shape[1:]),
                "units": [
                    {"text": unit, "entropy": float(entropy), "near_uniform": bool(flat), "plan": plan.tolist()}
                    for unit, entropy, flat, plan in zip(
                        level.units, level.entropy, level.near_uniform, level.plan, strict=True
                    )
                ],
            }
            for level in grounding.levels
        ]  # fmt: skip
        print_json({"text": text, "levels": levels, "near_uniform": uniform, "out": None if out is None else str(out)})
    else:
        table = Table("level", "unit", "entropy", "most at", box=None, header_style="bold")
        for level in grounding.levels:
            width = level.plan.shape[2]
            for unit, entropy, flat, plan in zip(
                level.units, level.entropy.tolist(), level.near_uniform.tolist(), level.plan, strict=True
            ):
                row, column = divmod(int(plan.argmax()), width)
                where = "nearly uniform" if flat else f"row {row + 1}, column {column + 1} of {plan.shape[0]} × {width}"
                table.add_row(str(level.level), _plain(unit), f"{entropy:.3f}", where, style="dim" if flat else None)
        console.print(table)
        console.print(
            "entropy of a unit's mass over the places, as a share of the maximum; 1: the plan says nothing about a "
            "place, as always where a level has one unit, which takes the mass of every place"
            + (f"\nwritten: {out}" if out else ""),
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    if uniform:
        raise typer.Exit(NOTHING_FOUND)


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    kind: Annotated[
        str,
        typer.Option(
            "--as",
            help="hub: a folder for huggingface.co with a model card; host: the host's own checkpoint; table: the "
            "vectors of all tokens, as a codebook for a language model.",
        ),
    ] = "hub",
    licence: Annotated[
        str | None, typer.Option(help="Licence of the model card, such as apache-2.0. Default: to be filled in.")
    ] = None,
    data: HeldOutData = None,
    device: Device = None,
    allow: AllowInRun = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a run as others read it. Weights are safetensors, but for hosts whose own format is another."""
    with _command(as_json, debug, "Nothing in the run was changed") as (console, tell):
        from tavq_plugin.use.export_run import export_run

        written = export_run(_load(run, data, device, allow, tell), out, kind, licence=licence)
    if as_json:
        print_json({"written": [str(path) for path in written]})
        return
    console.print(f"written: {', '.join(map(str, written))}", markup=False, highlight=False, soft_wrap=True)
    if kind == "hub":
        asked = "" if licence else "the model card asks for a licence: fill it in before you publish. "
        console.print(f"{asked}To publish: hf upload OWNER/NAME {out}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _command(as_json: bool, debug: bool, after_interrupt: str) -> Iterator[tuple[Console, Callable[[str], None]]]:
    """The console of a command, and what prints a message; what libraries print goes to stderr."""
    console = console_for(as_json)

    def tell(message: str) -> None:
        console.print(message, markup=False, highlight=False, soft_wrap=True)

    with report_errors(console, after_interrupt, as_json=as_json, debug=debug):
        yield console, tell


def _load(
    run: Path, data: Path | None, device: str | None, allow: list[str] | None, tell: Callable[[str], None]
) -> Run:
    from tavq_plugin.use.run import load

    return load(run, data=data, device=device, allow=allow or (), tell=tell)


@contextmanager
def _progress(console: Console, name: str) -> Iterator[Callable[[int], None]]:
    """Shows how many images are done."""
    with progress_bar(console) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done: bar.update(task, completed=done)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _print_words(console: Console, rows: list[Any]) -> None:
    table = Table("code", "word", "PMI", "images", "by chance", "95 %", "", box=None, header_style="bold")
    for row in rows:
        table.add_row(
            str(row.code), _plain(row.word), f"{row.information:.2f}", str(row.images), f"{row.chance:.2f}",
            f"{row.chance_high:.2f}", "" if row.above_chance else "not above chance",
            style=None if row.above_chance else "dim",
        )  # fmt: skip
    if rows:
        console.print(table)
