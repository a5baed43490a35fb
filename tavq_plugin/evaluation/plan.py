"""What is compared: methods, seeds and one recipe for all; what may differ between methods and what may not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

from tavq_plugin.evaluation.evaluate import Measuring
from tavq_plugin.io.atomic import read_json, save_json
from tavq_plugin.methods import METHODS, method_class
from tavq_plugin.moved import current_settings
from tavq_plugin.networks.weights import files_of
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.recipe_yaml import file_settings, read_recipe, refuse_given_twice
from tavq_plugin.training.run_folder import BOOKKEEPING

QUICK = ("steps=120", "start.revive_every=10", "adversarial.weight=0.1", "adversarial.start=80")
"""What --quick changes in the recipe: few steps, what lets so few come to codes that are used, and a discriminator for
their last third."""
DECIDED = {"seed": "--seeds", "method": "--methods"}  # settings of a run, and the options that decide them here
QUICK_TRAIN, QUICK_EVAL = 1000, 300  # images
QUICK_MEASURING = Measuring(transported=60, judges=("inception", "lpips", "mobilenet"))


@dataclass(frozen=True)
class Plan:
    """A comparison; everything but `own` is the same for all methods.

    Raises ValueError for unknown methods, repeated ones or seeds, and options that no method owns.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    out: Path
    data: Path | None = None  # None: drawn scenes
    n_train: int = 3000  # images at most
    n_eval: int = 500
    weights: Path | None = None  # folder of the judging networks
    measuring: Measuring = field(default_factory=Measuring)
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # options by method
    allow: tuple[str, ...] = ()  # further packages that the recipe's targets may name

    def __post_init__(self) -> None:
        for name in (*self.methods, *self.own):
            if name not in METHODS:
                raise ValueError(f"no method {name!r}: give some of {', '.join(METHODS)}")
        for name, options in self.own.items():
            known = set(signature(method_class(name)).parameters) - {"tokenizer", "corpus", "seed"}
            if unknown := sorted(options.keys() - known):
                raise ValueError(f"{name} has no option {unknown[0]!r}: {', '.join(sorted(known)) or 'it has none'}")
        for name, values in (("methods", self.methods), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} {','.join(map(str, values))}: give at least one, each once")
        if self.recipe.options:
            raise ValueError(
                f"the recipe sets options {sorted(self.recipe.options)}, which belong to one method: give them as "
                "--set METHOD.options.NAME=VALUE"
            )
        if self.weights is not None and not Path(self.weights).is_dir():
            raise FileNotFoundError(f"no folder {self.weights}: --weights takes a folder of weights files")

    @property
    def jobs(self) -> list[Job]:
        """Every run, all methods of a seed before the next seed."""
        return [Job(self, method, seed) for seed in self.seeds for method in self.methods]

    @property
    def shared(self) -> dict[str, Any]:
        """The recipe without what is a method's, a run's, or without effect."""
        apart = ("method", "options", "seed", *BOOKKEEPING)
        return {name: value for name, value in self.recipe.to_dict().items() if name not in apart}

    def refuse_changed(self) -> None:
        """ValueError where `out` holds a comparison by another recipe; else the recipe is noted there."""
        path = self.out / "shared.json"
        if not path.exists():
            save_json(path, self.shared)
            return
        ours, theirs = (_flat(side) for side in (self.shared, current_settings(read_json(path))))
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"{self.out} compares runs with {name}={theirs.get(name)}, and this asks for {ours.get(name)}: all "
                    "methods share one recipe; give another --out, or the same. What is a method's own is "
                    "--set METHOD.options.NAME=VALUE"
                )


@dataclass(frozen=True)
class Job:
    """One run of a comparison."""

    plan: Plan
    method: str
    seed: int

    @property
    def name(self) -> str:
        """As it is called on the screen."""
        return f"{self.method}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Where it lives."""
        return self.plan.out / self.method / f"seed{self.seed}"

    @property
    def recipe(self) -> Recipe:
        """The shared recipe with the method's own options."""
        options = dict(self.plan.own.get(self.method, {}))
        return replace(self.plan.recipe, method=self.method, seed=self.seed, options=options)

    @property
    def settings(self) -> dict[str, Any]:
        """What its figures depend on; those of a run with the same are kept."""
        learnt = {name: value for name, value in self.recipe.to_dict().items() if name not in BOOKKEEPING}
        asked = read_json(self.plan.out / "data" / "corpus.json")["asked"]
        measuring = json.loads(json.dumps(asdict(self.plan.measuring)))
        return {"recipe": learnt, "data": asked, "measuring": measuring, "weights": files_of(self.plan.weights)}


def plan_of(
    *,
    out: Path,
    data: Path | None = None,
    methods: str = "all",
    seeds: str | None = None,
    recipe: str = "small",
    resolution: int | None = None,
    steps: int | None = None,
    overrides: Sequence[str] = (),
    n_train: int | None = None,
    n_eval: int | None = None,
    weights: Path | None = None,
    quick: bool = False,
    allow: Sequence[str] = (),
) -> Plan:
    """A plan from what a command line gives; later ones win: recipe, quick, resolution and steps, overrides.

    Where neither the recipe nor an override names a tracker, none is used. A run has five checkpoints, or as many as
    the recipe asks for where that is more; an override has the last word. `seeds` None: the recipe's.

    Raises ValueError, with the mend, for an override of what a comparison decides by an option of its own.
    """
    shared, own = divided(overrides)
    refuse_decided(shared)
    refuse_given_twice(shared, resolution=resolution, steps=steps)
    said = file_settings(recipe)
    given = [*(() if "tracker" in said else ("tracker=none",)), *(QUICK if quick else ())]
    given += [f"{name}={value}" for name, value in (("resolution", resolution), ("steps", steps)) if value is not None]
    whole = read_recipe(recipe, [*given, *shared])
    if not any(override.startswith("checkpoint_every=") for override in shared):
        fifth = max(1, whole.steps // 5)
        asked = whole.checkpoint_every if "checkpoint_every" in said else 0
        whole = replace(whole, checkpoint_every=min(asked or fifth, fifth))
    try:
        numbers = (whole.seed,) if seeds is None else tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise ValueError(f"--seeds {seeds}: give whole numbers with commas between, as 0,1,2") from None
    return Plan(
        methods=tuple(METHODS) if methods == "all" else tuple(name.strip() for name in methods.split(",")),
        seeds=numbers,
        recipe=whole,
        out=out,
        data=data,
        n_train=n_train or (QUICK_TRAIN if quick else 3000),
        n_eval=n_eval or (QUICK_EVAL if quick else 500),
        weights=weights,
        measuring=QUICK_MEASURING if quick else Measuring(),
        own=own,
        allow=tuple(allow),
    )


def refuse_decided(overrides: Sequence[str]) -> None:
    """ValueError for a setting of a recipe that a comparison sets itself in each run: seed and method.

    >>> refuse_decided(["seed=3"])
    Traceback (most recent call last):
    ValueError: --set seed=3: a comparison takes it as --seeds 3
    """
    for override in overrides:
        name, _, value = override.partition("=")
        if name in DECIDED:
            raise ValueError(f"--set {override}: a comparison takes it as {DECIDED[name]} {value}".rstrip())


def divided(overrides: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Overrides of the recipe, and options by method, from NAME=VALUE and METHOD.options.NAME=VALUE.

    Raises ValueError for a setting of the recipe that is given for one method alone.

    >>> divided(["batch_size=8", "tavq.options.weight=0.1"])
    (['batch_size=8'], {'tavq': {'weight': 0.1}})
    """
    import yaml

    shared: list[str] = []
    own: dict[str, dict[str, Any]] = {}
    for override in overrides:
        name, equals, value = override.partition("=")
        method, _, rest = name.partition(".")
        if method not in METHODS:
            shared.append(override)
            continue
        if not equals or not rest.startswith("options.") or "." in rest.removeprefix("options."):
            raise ValueError(
                f"--set {override}: only options.NAME=VALUE may differ between methods, or the comparison is of "
                f"settings, not of methods; give {rest or 'NAME=VALUE'} for all, without {method}."
            )
        own.setdefault(method, {})[rest.removeprefix("options.")] = yaml.safe_load(value)
    return shared, own


def _flat(settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{where}{name}.") if isinstance(value, Mapping) else {f"{where}{name}": value}
    return found
