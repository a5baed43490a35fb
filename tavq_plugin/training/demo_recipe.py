"""What the runs of `tavq demo` share: the VQGAN that ships with the package for drawn scenes, or a new host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from tavq_plugin.io.file_hash import sha256_of
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.recipe_yaml import read_recipe

PACKAGED = "demo-vqgan"  # name of the packaged VQGAN
PACKAGED_SIDE = 32  # pixels
PACKAGED_RECIPE = Path(str(files("tavq_plugin.training") / "packaged" / "demo_vqgan.yaml"))  # it was trained by this
SHA256 = "0735adaaed7fe7c0bdb36cb2eb02cc6cdec791c628153123bc3197c8f040d975"
STEPS = {PACKAGED: 350, "small": 250}  # optimizer steps of one run of the demo, by its host
FURTHER = (  # how the packaged VQGAN is trained on: in float32, by a schedule that ends at 0
    "batch_size=8", "precision=no", "ema=0", "log_every=1", "optimizer.learning_rate=1e-3",
    "optimizer.schedule=cosine", "start.settle_share=0", "start.revive_every=0",
)  # fmt: skip
METHODS = {"lambda-0": "vqgan", "tavq": "tavq", "shuffled": "tavq-shuffled"}  # run of the demo → its method


def packaged_checkpoint(file: Path | None = None, *, sha256: str = SHA256) -> Path:
    """The file of the VQGAN that ships with the package, after a check of its hash.

    Args:
        file: Where it is. Default: beside its recipe, in the package.
        sha256: The hash that it must have. Default: that of the release.

    Raises:
        FileNotFoundError: It is missing.
        ValueError: It has another hash.
    """
    file = file or PACKAGED_RECIPE.with_suffix(".safetensors")
    mend = (
        "install the package again (pip install --force-reinstall tavq-plugin), or make the VQGAN yourself (python "
        "benchmarks/demo_vqgan.py, in the repository) and give its file by --init"
    )
    if not file.is_file():
        raise FileNotFoundError(f"{file}, the VQGAN that the demo starts from, is missing: {mend}")
    found = sha256_of(file)
    if found != sha256:
        raise ValueError(
            f"{file}, the VQGAN that the demo starts from, has sha256 {found}, and {sha256} was expected: {mend}"
        )
    return file


def demo_recipe(*, host: str, resolution: int, seed: int, steps: int | None = None, init: str = "") -> Recipe:
    """The recipe that all runs of a demo share, with one checkpoint halfway.

    Args:
        host: `PACKAGED`, for drawn scenes of `PACKAGED_SIDE` pixels, or "small", for anything else.
        resolution: Side of the images, in pixels.
        seed: Of the weights, the batches and the shuffled texts.
        steps: Optimizer steps of one run. Default: those in `STEPS`.
        init: Checkpoint to start from. Default: from scratch.
    """
    steps = steps or STEPS[host]
    changed = [f"resolution={resolution}", f"steps={steps}", f"seed={seed}", f"checkpoint_every={(steps + 1) // 2}"]
    changed += [f"host.wrap.max_grid={max(16, resolution // 2)}", "tracker=none"]
    if host == PACKAGED:
        changed += FURTHER
    return replace(read_recipe(PACKAGED_RECIPE if host == PACKAGED else host, changed), init=init)


def recipe_of_run(settings: Mapping[str, Any]) -> Recipe:
    """The recipe of a finished run of the demo, from its saved settings, without the checkpoint that it started from.

    Runs of earlier releases name no host: theirs is "small".
    """
    recipe = demo_recipe(
        host=settings.get("host", "small"), resolution=settings["resolution"], seed=settings["seed"],
        steps=settings["steps"],
    )  # fmt: skip
    options = {} if settings["run"] == "lambda-0" else dict(settings.get("alignment", {}))
    return replace(recipe, method=METHODS[settings["run"]], options=options)
