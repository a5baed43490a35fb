"""Finished runs of `tavq train`, `compare` and `demo`, found in their folders and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import read_json
from tavq_plugin.io.file_hash import sha256_of
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.moved import written_settings
from tavq_plugin.side_effects import isolated_random_state
from tavq_plugin.training.build import build_tokenizer
from tavq_plugin.training.build_host import refuse_targets
from tavq_plugin.training.demo_recipe import METHODS, recipe_of_run
from tavq_plugin.training.initial_checkpoint import FINISHED
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.recipe_yaml import recipe_of
from tavq_plugin.training.run_folder import finished_summary, load_weights, recipe_settings

COMPARISON = ("compare.json", "shared.json")  # a folder with one of these is a comparison's
SPEED: tuple[str, ...] = ("seconds_per_step", "plugin_share")


class Loaded(NamedTuple):
    """A tokenizer that can be evaluated."""

    tokenizer: Tokenizer
    align: TextAlignment | None  # the heads that were trained with the tokenizer, if they are at hand
    own_levels: bool  # whether levels 1-2 were trained with the host; if not, `wrap` added them for the evaluation


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of `tavq train`, `compare` or `demo`."""

    name: str
    seed: int
    folder: Path
    recipe: Recipe
    trained_on: Mapping[str, Any] | None  # fingerprint of its corpus; None where it has none
    corpus_folder: Path | None  # the corpus that its command prepared, if it is there
    speed: Mapping[str, float] = field(default_factory=dict)  # seconds_per_step, plugin_share
    allow: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Where the run is, for messages."""
        return str(self.folder)

    def load(self) -> Loaded:
        """The trained tokenizer, on a GPU if there is one. Raises ValueError if its weights do not fit its settings."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with isolated_random_state(torch.device("cpu")):
            tokenizer = build_tokenizer(replace(self.recipe, init=""), allow=self.allow)
        try:
            load_weights(self.folder, tokenizer, None)
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"the weights in {self.folder} do not fit the host in its settings.json ({error}): a file was changed "
                "or damaged; train the run again"
            ) from error
        return Loaded(tokenizer.to(device).eval(), None, own_levels=True)

    def settings(self, images: Tensor) -> dict[str, Any]:
        """What its results depend on: its recipe and the hashes of its weights; the images are not read."""
        hashes = {name: sha256_of(self.folder / name) for name in ("host.safetensors", "tavq.safetensors")}
        return {"host": self.recipe.host.target, **hashes}


def runs_in(folder: Path, name: str | None, *, allow: tuple[str, ...]) -> list[FinishedRun]:
    """The run in a folder, or all finished runs of a comparison or a demo."""
    if (folder / "settings.json").exists():
        return [_run(folder, name, allow=allow)]
    if any((folder / file).exists() for file in COMPARISON):
        methods = list((read_json(folder / "compare.json", strict=False) or {}).get("methods", {}))
        order = {method: place for place, method in enumerate(methods)}  # that of the comparison's own table
        found = sorted(folder.glob("*/seed*/settings.json"))
        children = sorted(found, key=lambda file: order.get(file.parent.parent.name, len(order)))
    elif (folder / "demo.json").exists():
        children = [folder / run / "settings.json" for run in METHODS if (folder / run / "settings.json").exists()]
    else:
        raise ValueError(
            f"{folder} is no run: it has neither settings.json (tavq train) nor {' or '.join(COMPARISON)} (tavq "
            "compare) nor demo.json (tavq demo): give the folder that --out named"
        )
    if name is not None:
        raise ValueError(
            f"{name}={folder}: this folder holds several runs, which have their own names; leave {name}= out, or give "
            "the folder of one run"
        )
    finished = [child.parent for child in children if _is_finished(child.parent)]
    if not finished:
        raise ValueError(f"{folder} has no finished run: give the command that made it again, and it resumes them")
    return [_run(run, None, allow=allow) for run in finished]


def unfinished_runs(folder: Path) -> list[Path]:
    """The runs of a comparison that began and did not finish; none for any other folder."""
    return [file.parent for file in sorted(folder.glob("*/seed*/settings.json")) if not _is_finished(file.parent)]


def _is_finished(folder: Path) -> bool:
    return any((folder / name).exists() for name in FINISHED)


def _run(folder: Path, name: str | None, *, allow: tuple[str, ...]) -> FinishedRun:
    """A finished run of one folder; ValueError if it is none."""
    settings = written_settings(read_json(folder / "settings.json"))
    if not isinstance(settings, Mapping):
        raise ValueError(f"{folder}/settings.json holds no settings: the file was changed or damaged; train it again")
    if not _is_finished(folder):
        raise ValueError(f"{folder} is not finished: give the command that made it again, and it resumes")
    absent = [file for file in ("host.safetensors", "tavq.safetensors") if not (folder / file).is_file()]
    if absent:
        raise FileNotFoundError(f"{folder} has no {absent[0]}: train the run again")
    if settings.keys() >= {"method", "host", "corpus"}:
        return _trained_run(folder, name, settings, allow)
    if settings.keys() >= {"run", "seed", "steps", "resolution"} and settings["run"] in METHODS:
        return _demo_run(folder, name, settings)
    raise ValueError(f"{folder}/settings.json was not written by tavq train, compare or demo: give the folder of a run")


def _trained_run(folder: Path, name: str | None, settings: Mapping[str, Any], allow: tuple[str, ...]) -> FinishedRun:
    try:
        recipe = recipe_of(recipe_settings(settings))
        refuse_targets(recipe, allow=allow)
    except ValueError as error:
        raise ValueError(f"{folder}/settings.json: {error}") from error
    summary = finished_summary(folder) or {}
    speed = {key: float(summary[key]) for key in SPEED if key in summary}
    corpora = [place / "data" for place in (folder, folder.parent.parent) if (place / "data" / "corpus.json").exists()]
    corpus = corpora[0] if corpora else None
    return FinishedRun(name or recipe.method, recipe.seed, folder, recipe, settings["corpus"], corpus, speed, allow)


def _demo_run(folder: Path, name: str | None, settings: Mapping[str, Any]) -> FinishedRun:
    """A run of the demo."""
    metrics = read_json(folder / "metrics.json")
    speed = {key: float(metrics[key]) for key in SPEED}
    recipe = recipe_of_run(settings)
    return FinishedRun(name or settings["run"], recipe.seed, folder, recipe, None, None, speed)
