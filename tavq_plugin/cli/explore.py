"""`tavq explore`: it parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tavq_plugin.cli.console import console_for, print_json, report_errors
from tavq_plugin.cli.options import AsJson, Debug, TextField
from tavq_plugin.io.progress import progress_bar


def explore(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of one run of tavq train, compare or demo.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Images and texts, in any form that prepare reads; the tune split is shown. Default: the run's own "
            "corpus if it is at hand, else drawn scenes."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = Path("tavq-page"),
    images: Annotated[int, typer.Option(min=1, help="At most this many images.")] = 64,
    also: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="One more run beside it, such as another seed. Give it again for each."),
    ] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Also write codes.parquet and units.parquet.")] = False,
    allow: Annotated[list[str] | None, typer.Option(help="One more package that a recipe may name.")] = None,
    text_field: TextField = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write one HTML file to look at a run: texts on images, codes and their words, reconstructions, curves.

    The file opens from disk, without a server or a network. The run stays as it was.
    """
    from tavq_plugin.data.read_settings import ReadSettings
    from tavq_plugin.use.explore.explore_run import explore_run

    console = console_for(as_json)
    with (
        report_errors(console, "The page was not written", as_json=as_json, debug=debug),
        progress_bar(console) as bar,
    ):
        tasks = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        made = explore_run(
            run, out=out, data=data, images=images, also=also or (), parquet=parquet, allow=allow or (),
            read=ReadSettings(text_field=text_field), progress=report,
        )  # fmt: skip
    if as_json:
        print_json({"images": len(made.content["images"]), "written": [str(path) for path in made.written]})
        return
    size = made.written[0].stat().st_size / 1e6
    console.print(f"{len(made.content['images'])} images, {size:.1f} MB", highlight=False)
    console.print("written: " + ", ".join(map(str, made.written)), markup=False, highlight=False, soft_wrap=True)
