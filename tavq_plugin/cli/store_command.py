"""`tavq store`: its commands parse, call and print."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tavq_plugin.cli.console import BROKEN, console_for, print_json, report_errors
from tavq_plugin.cli.options import AsJson, Debug
from tavq_plugin.io.counted import counted

if TYPE_CHECKING:
    from tavq_plugin.text.manifest import Manifest

store = typer.Typer(no_args_is_help=True, help="Check, merge, extend and whiten text stores.")


@store.command()
def verify(
    store: Annotated[Path, typer.Argument(help="Folder of the store.")], as_json: AsJson = False, debug: Debug = False
) -> None:
    """Read all of a store and name the shards that must be made again; exit code 1 if there are any."""
    faults = print_faults(console_for(as_json), store, debug=debug)
    if as_json:
        print_json({"faults": faults})
    if faults:
        raise typer.Exit(BROKEN)


@store.command()
def info(
    store: Annotated[Path, typer.Argument(help="Folder of a finished store.")],
    page: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Also write one HTML file with lengths, frequent units, languages, flags and what was left out.",
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Print what a store holds: texts, shards, units of each kind, width, and what made it."""
    from tavq_plugin.preprocessing.store_page import write_store_page
    from tavq_plugin.text.store_info import store_info

    console = console_for(as_json)
    with report_errors(console, "The store was not changed", as_json=as_json, debug=debug):
        found = store_info(store) if page is None else write_store_page(store, page)
    if as_json:
        print_json(asdict(found))
        return
    for name, value in found.rows():
        console.print(f"{name}: {value}", markup=False, highlight=False, soft_wrap=True)
    if page is not None:
        console.print(f"written: {page}", markup=False, highlight=False, soft_wrap=True)


@store.command()
def export(
    store: Annotated[Path, typer.Argument(help="Folder of a finished store.")],
    out: Annotated[Path, typer.Option(help="New .parquet file, or new folder for .npy files.")],
    debug: Debug = False,
) -> None:
    """Write the units of a store for other programs: one Parquet row per unit, or arrays as .npy files."""
    from tavq_plugin.text.store_export import export_store

    console = Console()
    with report_errors(console, "No file was left half-written", debug=debug):
        units = export_store(store, out)
    console.print(f"{out}: {counted(units, 'units')}")


@store.command()
def merge(
    stores: Annotated[list[Path], typer.Argument(help="Folders of finished stores, in the order of the new one.")],
    out: Annotated[Path, typer.Option(help="Folder of the new store.")],
    debug: Debug = False,
) -> None:
    """Copy the shards of several stores into a new one; their fingerprints must be equal. Nothing is encoded."""
    from tavq_plugin.text import manifest

    _print_new_store(out, lambda: manifest.merge_stores(stores, out), debug)


@store.command()
def append(
    store: Annotated[Path, typer.Argument(help="Folder of the store to extend.")],
    others: Annotated[list[Path], typer.Argument(help="Folders of finished stores.")],
    debug: Debug = False,
) -> None:
    """Copy the shards of other stores into a store; their fingerprints must be equal. Nothing is encoded."""
    from tavq_plugin.text import manifest

    _print_new_store(store, lambda: manifest.append_stores(store, others), debug)


@store.command()
def whiten(
    store: Annotated[Path, typer.Argument(help="Folder of a finished store.")],
    out: Annotated[Path, typer.Option(help="Folder of the new store.")],
    like: Annotated[
        Path | None, typer.Option(help="Use the whitening of this store; for held-out texts, the training store's.")
    ] = None,
    shrink: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="How far the covariance moves towards equal variance in all directions."),
    ] = 0.1,
    debug: Debug = False,
) -> None:
    """Make a new store of whitened units: zero mean, equal variance in all directions."""
    from tavq_plugin.text import whitening

    _print_new_store(out, lambda: whitening.whiten(store, out, like=like, shrink=shrink), debug)


def _print_new_store(out: Path, make: Callable[[], Manifest], debug: bool) -> None:
    console = Console()
    with report_errors(console, "No store was changed", debug=debug):
        made = make()
    console.print(f"{out}: {counted(made.texts or 0, 'texts')} in {counted(made.shards or 0, 'shards')}")


def print_faults(console: Console, store: Path, *, debug: bool) -> list[dict[str, str]]:
    """Print the shards that must be made again, and give them as JSON has them."""
    from tavq_plugin.text.manifest import find_faults

    faults = []
    with report_errors(console, "Nothing was changed", debug=debug):
        for fault in find_faults(store):
            faults.append({"path": str(fault.path), "reason": fault.reason})
            console.print(f"{fault.path}: {fault.reason}", markup=False, highlight=False, soft_wrap=True)
    if faults:
        console.print("Delete the named shards and run the same tavq prepare again, which makes only what is missing.")
    else:
        console.print(f"{store}: no fault found")
    return faults
