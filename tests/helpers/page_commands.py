"""Whether a command that a page shows could run: the real command line, existing extras and existing files."""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping, Sequence

import typer
from helpers.page_blocks import ROOT
from typer.main import get_command

from tavq_plugin.cli.app import app

# Programs of which only the name is checked, and why.
KNOWN = {
    "ruff": "a development tool of the extra dev",
    "lint-imports": "a development tool of the extra dev",
    "mypy": "a development tool of the extra dev",
}
# The same for `python -m NAME`.
KNOWN_MODULES = {
    "venv": "Python's own",
    "pytest": "a development tool of the extra dev",
    "sphinx": "a development tool of the extra docs",
}


def refuse_command(words: Sequence[str]) -> None:
    """Raise an error that says why a command of a page could not run; `words` as `commands_of` gives them."""
    program, *rest = words
    if "tavq_plugin" in rest and rest[rest.index("tavq_plugin") - 1] == "-m":  # accelerate launch -m tavq_plugin train
        program, rest = "tavq", rest[rest.index("tavq_plugin") + 1 :]
    if program.startswith("python") and rest[:2] == ["-m", "pip"]:
        program, rest = "pip", rest[2:]
    if program == "tavq":
        parse_tavq(rest)
    elif program == "pip":
        _refuse_pip(rest)
    elif program.startswith("python") and rest[:1] == ["-m"]:
        _refuse_unknown(" ".join(rest[1:2]), KNOWN_MODULES, words)
    elif program in ("python", "python3", "bash", "torchrun"):
        _refuse_missing_file(rest)
    else:
        _refuse_unknown(program, KNOWN, words)


def _refuse_unknown(name: str, known: Mapping[str, str], words: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{' '.join(words)!r} is not checked by anything: show tavq, pip, python FILE or bash FILE")


def parse_tavq(words: Sequence[str]) -> dict[str, object]:
    """The arguments that `tavq` reads from these words; {} for --help. Raises what the command line raises."""
    command, name, rest = get_command(app), "tavq", list(words)
    while commands := getattr(command, "commands", None):
        if rest[:1] == ["--help"]:
            return {}
        if not rest or rest[0] not in commands:
            raise ValueError(f"{name} has no command {' '.join(rest[:1])!r}: it has {', '.join(commands)}")
        command, name, rest = commands[rest[0]], f"{name} {rest[0]}", rest[1:]
    try:
        return command.make_context(name, rest).params
    except typer.Exit:  # --help
        return {}


def _refuse_pip(words: Sequence[str]) -> None:
    """Only this project may be installed, from a folder or by name, with extras that it has."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    known = set(config["options.extras_require"])
    packages = [word for word in words[1:] if not word.startswith("-")]
    if words[:1] != ["install"] or not packages:
        raise ValueError(f"pip {' '.join(words)}: show pip install PACKAGE")
    for package in packages:
        named = re.fullmatch(r"(?:tavq-plugin|\.)(?:\[([\w,-]+)\])?", package)
        if not named:
            raise ValueError(f"pip install {package}: show tavq-plugin, which needs it, with an extra")
        if unknown := set((named[1] or "").split(",")) - known - {""}:
            raise ValueError(f"pip install {package}: setup.cfg has no extra {', '.join(sorted(unknown))}")


def _refuse_missing_file(words: Sequence[str]) -> None:
    files = [word for word in words if word.endswith((".py", ".sh")) or (ROOT / word).is_file()]
    if not files:
        raise ValueError(f"{' '.join(words)!r} names no file of the repository")
    if not (ROOT / files[0]).is_file():
        raise ValueError(f"{files[0]} does not exist")
