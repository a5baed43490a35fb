"""`tavq explore`: it parses, calls and prints."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tavq_plugin.cli.console import StoppedByScheduler, console_for, print_json, report_errors
from tavq_plugin.cli.options import AllowInRun, AsJson, Debug, Device, TextField
from tavq_plugin.io.progress import progress_bar

if TYPE_CHECKING:
    from tavq_plugin.use.explore.live_server import LiveServer


def explore(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of one run of tavq train, compare or demo.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Images and texts, in any form that prepare reads; the tune split is shown. Default: those that the "
            "run was trained on."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = Path("tavq-page"),
    images: Annotated[int, typer.Option(min=1, help="At most this many images.")] = 64,
    also: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="One more run beside it, such as another seed. Give it again for each."),
    ] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Also write codes.parquet and units.parquet.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Then serve the page on 127.0.0.1, for images and texts of your own.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --serve; 0: any that is free.")] = 8765,
    device: Device = None,
    allow: AllowInRun = None,
    text_field: TextField = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write one HTML file to look at a run: texts on images, codes and their words, reconstructions, curves.

    The file opens from disk, without a server or a network. The run stays as it was. With --serve, the page also takes
    an image and a text of yours, until you press Ctrl-C.
    """
    from tavq_plugin.data.read_settings import ReadSettings
    from tavq_plugin.use.explore.explore_run import explore_run
    from tavq_plugin.use.explore.live_server import LiveServer

    console = console_for(as_json)

    def tell(message: str) -> None:
        console.print(message, markup=False, highlight=False, soft_wrap=True)

    with ExitStack() as opened:
        opened.enter_context(report_errors(console, "The page was not written", as_json=as_json, debug=debug))
        server = opened.enter_context(LiveServer(port)) if serve else None  # a port in use is told first
        with progress_bar(console) as bar:
            tasks = {}

            def report(name: str, done: int, total: int) -> None:
                if name not in tasks:
                    tasks[name] = bar.add_task(name, total=total)
                bar.update(tasks[name], completed=done)

            made = explore_run(
                run, out=out, data=data, images=images, also=also or (), parquet=parquet, allow=allow or (),
                device=device, read=ReadSettings(text_field=text_field), progress=report, tell=tell,
            )  # fmt: skip
        if server is not None:
            server.show(made.content, made.run)
        shown, size = len(made.content["images"]), made.written[0].stat().st_size / 1e6
        if not as_json:
            console.print(f"{shown} images, {size:.1f} MB", highlight=False)
            tell("written: " + ", ".join(map(str, made.written)))
        if server is not None:
            tell(f"serving {server.address} until Ctrl-C")
            _serve(server)
    if as_json:
        print_json({"images": shown, "written": [str(path) for path in made.written]})


def _serve(server: LiveServer) -> None:
    """Serve until Ctrl-C, which is how it is meant to end."""
    try:
        server.serve_forever()
    except StoppedByScheduler:
        raise
    except KeyboardInterrupt:
        return
