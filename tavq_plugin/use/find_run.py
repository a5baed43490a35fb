"""The run in a folder: one that our commands finished, or one that `Run.save_pretrained` wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tavq_plugin.evaluation.sources.finished_runs import FinishedRun, runs_in
from tavq_plugin.io.atomic import read_json
from tavq_plugin.training.build_host import refuse_targets
from tavq_plugin.training.recipe_yaml import recipe_of

CONFIG, KIND, HUB_VERSION = "config.json", "tavq-plugin run", 1
WEIGHTS = ("host.safetensors", "tavq.safetensors")


def find_run(folder: Path, *, allow: Sequence[str] = ()) -> FinishedRun:
    """The finished run in a folder.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks a file.
        ValueError: The folder is none of a run, of several, of one that is not finished, or of a newer release.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: give the folder that --out of tavq train, compare or demo named")
    refuse_newer(folder)
    if (folder / CONFIG).is_file() and not (folder / "settings.json").is_file():
        return _hub_run(folder, tuple(allow))
    found = runs_in(folder, None, allow=tuple(allow))
    if len(found) > 1:
        inside = ", ".join(str(run.folder.relative_to(folder)) for run in found)
        raise ValueError(f"{folder} holds {len(found)} runs: give the folder of one of them ({inside})")
    return found[0]


def refuse_newer(folder: Path) -> None:
    """Raise ValueError if a newer release of the plug-in has written the run in this folder."""
    ours = version("tavq-plugin")
    for name in (CONFIG, "settings.json", "history.json"):
        content = read_json(folder / name, strict=False)
        versions = content.get("versions") if isinstance(content, Mapping) else None
        theirs = versions.get("tavq-plugin") if isinstance(versions, Mapping) else None
        if isinstance(theirs, str) and _numbers(theirs) > _numbers(ours):
            raise ValueError(
                f"{folder} was written by tavq-plugin {theirs}, and this is {ours}: pip install --upgrade tavq-plugin"
            )


def hub_config(folder: Path) -> dict[str, Any] | None:
    """What config.json says of a run; None if it is none of ours."""
    content = read_json(folder / CONFIG, strict=False)
    return content if isinstance(content, dict) and content.get("kind") == KIND else None


def _hub_run(folder: Path, allow: tuple[str, ...]) -> FinishedRun:
    config = hub_config(folder)
    if config is None:
        raise ValueError(
            f"{folder}/{CONFIG} was not written by Run.save_pretrained or tavq export: give the folder of a run"
        )
    if not isinstance(config.get("version"), int) or config["version"] > HUB_VERSION:
        raise ValueError(
            f"{folder} has version {config.get('version')!r} of the format, and this release reads {HUB_VERSION}: pip "
            "install --upgrade tavq-plugin"
        )
    absent = [name for name in WEIGHTS if not (folder / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{folder} has no {absent[0]}: export the run, or download the folder, again")
    try:
        recipe = recipe_of(config["recipe"])
        refuse_targets(recipe, allow=allow)
        name, seed, trained_on = str(config["name"]), int(config["seed"]), config.get("trained_on")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}/{CONFIG}: {error}") from error
    return FinishedRun(name, seed, folder, recipe, trained_on, None, allow=allow)


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a release, to compare by.

    >>> _numbers("0.10.1.dev2") > _numbers("0.9")
    True
    """
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part)  # type: ignore[index]
