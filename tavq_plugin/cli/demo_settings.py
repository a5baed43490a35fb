"""The settings of `tavq demo`: what its runs start from, how they are aligned, and how many images they use."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.losses.alignment_settings import AlignmentSettings
from tavq_plugin.training.build import describe_start
from tavq_plugin.training.demo_recipe import PACKAGED, PACKAGED_SIDE, demo_recipe, packaged_checkpoint
from tavq_plugin.training.initial_checkpoint import checkpoint_settings
from tavq_plugin.training.recipe import Recipe

N_TRAIN = {"scenes": 1200, "folder": 3000}  # training images, at most, by where they come from
N_EVAL = {"scenes": 800, "folder": 500}  # held-out images, at most; the spread falls with their number
# from the packaged VQGAN: new heads beside a trained host, and few steps (docs/demo.md has what it gave over seeds)
FROM_TRAINED: dict[str, Any] = {"balance": [0.25, 0.25, 0.75], "rise": 0.3}


@dataclass(frozen=True)
class DemoSettings:
    """What one call of `tavq demo` trains and measures."""

    data: Path | None  # folder of images and texts; None: drawn scenes
    host: str  # `PACKAGED` or "small"
    recipe: Recipe  # what all runs share
    alignment: dict[str, Any]  # options of the method, for the runs that align
    n_train: int  # training images, at most
    n_eval: int  # images of the tune split, at most
    start: str  # what the runs start from, in one sentence
    read: ReadSettings = field(default_factory=ReadSettings)  # the fields of the data with id and text

    @property
    def checkpoint(self) -> dict[str, str]:
        """The SHA-256 of the checkpoint that the runs start from; empty if they start from scratch."""
        return checkpoint_settings(self.recipe.init)


def demo_settings(
    *,
    data: Path | None = None,
    resolution: int = PACKAGED_SIDE,
    steps: int | None = None,
    seed: int = 0,
    init: str | None = None,
    weight: float | None = None,
    n_train: int | None = None,
    n_eval: int | None = None,
    packaged: Path | None = None,
    read: ReadSettings | None = None,
) -> DemoSettings:
    """The settings for the options of `tavq demo`; None means the default.

    Args:
        data: Folder of images and texts. Default: drawn scenes.
        resolution: Side of the images, in pixels.
        steps: Optimizer steps of one run. Default: those of the host in `training.demo_recipe.STEPS`.
        seed: Of the weights, the batches and the shuffled texts.
        init: Checkpoint of the host to start from. Default: the packaged one for scenes of 32 px, else none.
        weight: λ of a weighted sum. Default: balanced gradients, by the package's default balance.
        n_train: Training images, at most. Default: `N_TRAIN`.
        n_eval: Images of the tune split, at most. Default: `N_EVAL`.
        packaged: File of the packaged VQGAN. Default: that in the package.
        read: The fields of the data with id and text. Default: those that are understood.

    Raises:
        FileNotFoundError: The packaged VQGAN is missing, or there is no checkpoint `init`.
        ValueError: The packaged VQGAN was changed, or `init` does not fit the host.
    """
    host = PACKAGED if data is None and resolution == PACKAGED_SIDE else "small"
    recipe = demo_recipe(host=host, resolution=resolution, seed=seed, steps=steps, init=init or "")
    if init:
        start = describe_start(recipe)
    elif host == PACKAGED:
        recipe = replace(recipe, init=str(packaged_checkpoint(packaged)))
        start = f"starts from the VQGAN that ships with the package ({PACKAGED}), trained on other drawn scenes"
    else:
        start = (
            f"trains from scratch, as the packaged VQGAN is for drawn scenes of {PACKAGED_SIDE} px; --init CHECKPOINT "
            "starts from one of yours"
        )
    if weight is not None:  # in a weighted sum the host learns through the added levels, so it must at λ = 0 too
        wrap = {**recipe.host.wrap, "detach_added_levels": False}
        recipe = replace(recipe, host=replace(recipe.host, wrap=wrap))
    kind = "scenes" if data is None else "folder"
    return DemoSettings(
        data,
        host,
        recipe,
        _alignment(resolution, weight, host),
        n_train or N_TRAIN[kind],
        n_eval or N_EVAL[kind],
        start,
        read or ReadSettings(),
    )


def _alignment(resolution: int, weight: float | None, host: str) -> dict[str, Any]:
    """Options of the method. Below 64 px the host is small, and so are the heads."""
    hidden = 128 if resolution < 64 else None
    defaults = AlignmentSettings(weight=weight)
    if weight is not None:
        reach: dict[str, Any] = {"weight": weight, "weight_end": 0.0}
    elif host == PACKAGED:
        reach = FROM_TRAINED
    else:
        reach = {"balance": list(defaults.balance) if isinstance(defaults.balance, tuple) else defaults.balance}
    return {"level_weights": list(defaults.level_weights), "contrast": defaults.contrast, "hidden": hidden, **reach}
