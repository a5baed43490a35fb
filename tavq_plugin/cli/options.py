"""Options that several of the `tavq` commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tavq_plugin.data.read_settings import ReadSettings

Data = Annotated[
    Path | None,
    typer.Option(help="Images and texts, in any form that prepare reads. Default: drawn scenes."),
]
TextField = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column or field with the text. Default: those in docs/texts.md.")
]
IdField = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column or field with the id. Default: id, else the image's name.")
]
RecipeFile = Annotated[str, typer.Option(help="A YAML file, or the name of a recipe that comes with the package.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(help="One more package that a target in the recipe may name, or class that --init may hold as data."),
]
AllowInRun = Annotated[list[str] | None, typer.Option(help="One more package that the run's recipe may name.")]
Resolution = Annotated[int | None, typer.Option(min=16, help="Width and height in pixels. Default: the recipe's.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a setting of the recipe, or of one method: METHOD.options.NAME=VALUE.",
    ),
]
Device = Annotated[str | None, typer.Option(help="Default: a GPU if there is one.")]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print only the results, as JSON, to standard output; all else to standard error."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error too.")]
Init = Annotated[
    str | None,
    typer.Option(
        metavar="CHECKPOINT",
        help="Start from a trained host: a .safetensors, .ckpt, .pt or .pth file, or the folder of a finished run.",
    ),
]


def read_settings(
    data: Path | None, text_field: str | None, id_field: str | None, *, option: str = "--data"
) -> ReadSettings:
    """How the records of the data are read; raises ValueError if a field is named and no data are given."""
    from tavq_plugin.data.read_settings import ReadSettings

    if data is None and (text_field or id_field):
        named = "--text-field" if text_field else "--id-field"
        raise ValueError(f"{named} names a field of {option}: give {option} too, or leave {named} out")
    return ReadSettings(text_field=text_field, id_field=id_field)


def options_given(ctx: typer.Context, *, but: Sequence[str] = ()) -> list[str]:
    """The options on the command line, such as "--set", without those whose arguments are named in `but`."""
    names = [name for name in ctx.params if name not in but]
    given = {name for name in names if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    return [option.opts[0] for option in ctx.command.params if option.name in given]
