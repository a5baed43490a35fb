"""What is compared: methods, seeds, and one recipe for all; only a method's own options may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.evaluation.settings import VERSION, EvaluationSettings
from tavq_plugin.io.atomic import read_json, save_json
from tavq_plugin.methods import METHODS, method_class
from tavq_plugin.moved import current_settings
from tavq_plugin.networks.weights import files_of
from tavq_plugin.training.initial_checkpoint import HASH, checkpoint_settings
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.recipe_yaml import file_settings, read_recipe, refuse_given_twice
from tavq_plugin.training.run_folder import BOOKKEEPING, flat_settings, resolved_recipe

QUICK = ("steps=120", "start.revive_every=10", "adversarial.weight=0.1", "adversarial.start=80")
"""What --quick changes in the recipe: few steps, dead codes that are restarted often enough for so few steps, and a
discriminator in the last third of them."""
DECIDED = {"seed": "--seeds", "method": "--methods"}  # setting of a run → the option of the command that sets it
EQUAL_TIME = "equal-time"  # folder of the runs at equal time; below it, runs of other steps have folders of their own
TRIALS = "trials"  # folder of the runs of `tavq tune`; below it, each number of steps and strength has a folder
QUICK_TRAIN, QUICK_EVAL = 1000, 300  # training images and images of the tune split, at most
QUICK_EVALUATION = EvaluationSettings(transport_images=60, judges=("inception", "lpips", "mobilenet"))


@dataclass(frozen=True)
class Plan:
    """A comparison; everything but `method_options` is the same for all methods.

    Raises ValueError for unknown or repeated methods, repeated seeds, an option that its method does not have, or
    options in the recipe, and FileNotFoundError if `weights` is no folder.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    out: Path
    data: Path | None = None  #: None: drawn scenes
    n_train: int = 3000  #: images at most
    n_eval: int = 500  #: images of the tune split, at most
    weights: Path | None = None  #: folder with weights of the judging networks
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    method_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  #: by method
    allow: tuple[str, ...] = ()  #: further packages that the recipe's targets may name
    read: ReadSettings = field(default_factory=ReadSettings)  #: the fields with id and text, and the limits
    tuned: Path | None = None  #: folder of the `tavq tune` that chose options of methods
    equal_time: bool = False  #: train methods of another speed once more, for the same time as the reference

    def __post_init__(self) -> None:
        for name in (*self.methods, *self.method_options):
            if name not in METHODS:
                raise ValueError(f"no method {name!r}: give some of {', '.join(METHODS)}")
        for name, options in self.method_options.items():
            known = set(signature(method_class(name)).parameters) - {"tokenizer", "corpus", "seed"}
            if unknown := sorted(options.keys() - known):
                raise ValueError(
                    f"{name} has no option {unknown[0]!r}; its options: {', '.join(sorted(known)) or 'none'}"
                )
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
        """The part of the recipe that all runs share and that affects their results."""
        not_shared = ("method", "options", "seed", *BOOKKEEPING)
        recipe = {name: value for name, value in self.recipe.to_dict().items() if name not in not_shared}
        return recipe | self.checkpoint

    @property
    def checkpoint(self) -> dict[str, str]:
        """The hash of the recipe's `init`; a comparison that has begun knows it without the file."""
        return checkpoint_settings(self.recipe.init, read_json(self.out / "shared.json", strict=False))

    def options_of(self, method: str, strength: float | None = None) -> dict[str, Any]:
        """A method's own options, complete; what they leave open, a run of this method that `out` holds decides.

        With `strength`, they are those of a trial (`Method.at_strength`).
        """
        own = replace(self.recipe, method=method, options=dict(self.method_options.get(method, {})))
        if strength is not None:
            return resolved_recipe(
                replace(own, options=method_class(method).at_strength(strength, own.options))
            ).options
        return resolved_recipe(own, *sorted((self.out / method).glob("seed*"))).options

    def refuse_changed(self) -> None:
        """Raise ValueError if `out` holds a comparison by another recipe; write shared.json if it holds none."""
        path = self.out / "shared.json"
        if not path.exists():
            save_json(path, self.shared)
            return
        sides = (self.shared, current_settings(read_json(path)))
        ours, theirs = ({"init": "", **flat_settings(side)} for side in sides)
        if HASH in ours and HASH in theirs and ours[HASH] != theirs[HASH]:
            raise ValueError(
                f"{self.out} compares runs that started from {theirs['init']} with sha256 {theirs[HASH][:12]}…, and "
                f"{ours['init']} has {ours[HASH][:12]}…: give the checkpoint as it was, or another --out"
            )
        moved = {"init"} if HASH in ours and HASH in theirs else set()  # the hash tells; the file may have moved
        for name in sorted((ours.keys() | theirs.keys()) - moved):
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"{self.out} compares runs with {name}={_shown(theirs, name)}, and this asks for "
                    f"{_shown(ours, name)}: all methods share one recipe; give another --out, or the same recipe. Give "
                    "an option of one method as --set METHOD.options.NAME=VALUE"
                )


@dataclass(frozen=True)
class Job:
    """One run of a comparison, or a trial of `tavq tune`."""

    plan: Plan
    method: str
    seed: int
    steps: int | None = None  # of a run at equal time, and of a trial; None: the recipe's
    strength: float | None = None  # of a trial: factor on the options that weigh what the method adds

    @property
    def name(self) -> str:
        """The run's name on the screen and in messages."""
        strength = "" if self.strength is None else f", strength {self.strength:g}"
        return f"{self.method}{strength}, seed {self.seed}" + (
            f", {self.steps} steps" if self.steps is not None else ""
        )

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        place = self.plan.out
        if self.strength is not None:
            place = place / TRIALS / f"{self.recipe.steps}-steps" / f"strength-{self.strength:g}"
        elif self.steps is not None:
            place = place / EQUAL_TIME / f"{self.steps}-steps"
        return place / self.method / f"seed{self.seed}"

    @property
    def recipe(self) -> Recipe:
        """The shared recipe with the method's own options."""
        steps = self.steps or self.plan.recipe.steps
        options = self.plan.options_of(self.method, self.strength)
        return replace(self.plan.recipe, method=self.method, seed=self.seed, options=options, steps=steps)

    @property
    def settings(self) -> dict[str, Any]:
        """What the run's results depend on; results with equal settings are kept."""
        left_out = ("init", *BOOKKEEPING)  # of `init`, the hash counts
        trained = {name: value for name, value in self.recipe.to_dict().items() if name not in left_out}
        trained |= self.plan.checkpoint
        asked = read_json(self.plan.out / "data" / "corpus.json")["asked"]
        evaluation = self.plan.evaluation.to_dict() | {"version": VERSION}
        return {"recipe": trained, "data": asked, "evaluation": evaluation, "weights": files_of(self.plan.weights)}


def _shown(settings: Mapping[str, Any], name: str) -> Any:
    """A setting as a message shows it; an empty text as ''."""
    return settings.get(name) if settings.get(name) != "" else "''"


def plan_of(
    *,
    out: Path,
    data: Path | None = None,
    methods: str = "all",
    seeds: str | None = None,
    recipe: str = "small",
    resolution: int | None = None,
    steps: int | None = None,
    init: str | None = None,
    overrides: Sequence[str] = (),
    n_train: int | None = None,
    n_eval: int | None = None,
    weights: Path | None = None,
    quick: bool = False,
    equal_time: bool | None = None,
    allow: Sequence[str] = (),
    read: ReadSettings | None = None,
    tuned: Path | None = None,
) -> Plan:
    """A plan from the options of `tavq compare`.

    Settings are applied in this order, and later ones win: recipe, quick, resolution, steps and init, overrides.

    Args:
        out: Folder of the comparison.
        data: Folder of images and texts. Default: drawn scenes.
        methods: Names separated by commas, or "all".
        seeds: Whole numbers separated by commas. Default: the recipe's seed.
        recipe: A YAML file, or the name of a recipe that comes with the package.
        resolution: Pixels per side. Default: the recipe's.
        steps: Optimizer steps of each run. Default: the recipe's.
        init: Checkpoint of a trained host that all runs start from. Default: the recipe's.
        overrides: NAME=VALUE of the recipe, or METHOD.options.NAME=VALUE. There is no tracker unless the recipe or an
            override names one. Each run has at least five checkpoints unless an override sets checkpoint_every.
        n_train: Training images at most. Default: 3000, quick 1000.
        n_eval: Images of the tune split at most. Default: 500, quick 300.
        weights: Folder with weights of the judging networks. Default: none.
        quick: Few steps and images.
        equal_time: Train methods of another speed once more, for the same time as the reference. Default: unless quick.
        allow: Further packages that the recipe's targets may name.
        read: The fields of the data with id and text. Default: those that are understood.
        tuned: Folder of the `tavq tune` that chooses the options of methods. Default: none.

    Raises:
        ValueError: An override sets what an option of the command sets, or sets a recipe's setting for one method.
    """
    shared, method_options = split_overrides(overrides)
    refuse_decided(shared)
    refuse_given_twice(shared, resolution=resolution, steps=steps, init=init)
    named = file_settings(recipe)
    given = [*(() if "tracker" in named else ("tracker=none",)), *(QUICK if quick else ())]
    given += [f"{name}={value}" for name, value in (("resolution", resolution), ("steps", steps)) if value is not None]
    resolved = read_recipe(recipe, [*given, *shared])
    resolved = resolved if init is None else replace(resolved, init=init)
    if not any(override.startswith("checkpoint_every=") for override in shared):
        fifth = max(1, resolved.steps // 5)
        asked = resolved.checkpoint_every if "checkpoint_every" in named else 0
        resolved = replace(resolved, checkpoint_every=min(asked or fifth, fifth))
    try:
        numbers = (resolved.seed,) if seeds is None else tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise ValueError(f"--seeds {seeds}: give whole numbers separated by commas, such as 0,1,2") from None
    return Plan(
        methods=tuple(METHODS) if methods == "all" else tuple(name.strip() for name in methods.split(",")),
        seeds=numbers,
        recipe=resolved,
        out=out,
        data=data,
        n_train=n_train or (QUICK_TRAIN if quick else 3000),
        n_eval=n_eval or (QUICK_EVAL if quick else 500),
        weights=weights,
        evaluation=QUICK_EVALUATION if quick else EvaluationSettings(),
        method_options=method_options,
        equal_time=not quick if equal_time is None else equal_time,
        allow=tuple(allow),
        read=read or ReadSettings(),
        tuned=tuned,
    )


def refuse_decided(overrides: Sequence[str]) -> None:
    """Raise ValueError for an override of seed or method, which a comparison sets for each run.

    >>> refuse_decided(["seed=3"])
    Traceback (most recent call last):
    ValueError: --set seed=3: a comparison sets it for each run; give --seeds 3 instead
    """
    for override in overrides:
        name, _, value = (part.strip() for part in override.partition("="))
        if name in DECIDED:
            option = f"{DECIDED[name]} {value}".rstrip()
            raise ValueError(f"--set {override}: a comparison sets it for each run; give {option} instead")


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Split overrides into NAME=VALUE of the recipe, and options by method from METHOD.options.NAME=VALUE.

    Raises ValueError if a setting of the recipe is given for a single method.

    >>> split_overrides(["batch_size=8", "tavq.options.weight=0.1"])
    (['batch_size=8'], {'tavq': {'weight': 0.1}})
    """
    import yaml

    shared: list[str] = []
    method_options: dict[str, dict[str, Any]] = {}
    for override in overrides:
        name, equals, value = override.partition("=")
        method, _, rest = name.partition(".")
        if method not in METHODS:
            shared.append(override)
            continue
        refuse_decided([f"{rest}{equals}{value}"])  # tavq.seed=3 is refused as seed=3 is
        if not equals or not rest.startswith("options.") or "." in rest.removeprefix("options."):
            raise ValueError(
                f"--set {override}: only options.NAME=VALUE may differ between methods, else the comparison would be "
                f"of settings; give --set {rest or 'NAME=VALUE'} for all methods, without {method}"
            )
        method_options.setdefault(method, {})[rest.removeprefix("options.")] = yaml.safe_load(value)
    return shared, method_options
