"""The tracker of a run: TensorBoard's files in its folder, or a run of Weights & Biases."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.run_folder import flat_settings

if TYPE_CHECKING:
    from accelerate import Accelerator

LOGS = "logs"  # folder in that of the run
PROJECT = "tavq-plugin"  # in Weights & Biases, unless WANDB_PROJECT names another
INSTALL = {"tensorboard": 'pip install "tavq-plugin[train]"', "wandb": "pip install wandb"}


def refuse_missing_tracker(name: str) -> None:
    """Raise ImportError, with the command that installs it, if the tracker's package is missing.

    >>> refuse_missing_tracker("none")
    """
    if name == "none":
        return
    try:
        __import__(name)
    except ImportError as error:
        mend = f"{INSTALL[name]}, or --set tracker=none"
        raise ImportError(f"tracker={name} needs its package ({error}): {mend}") from error


def start_tracker(accelerator: Accelerator, recipe: Recipe) -> None:
    """Start the recipe's tracker, with all settings of the recipe; every process calls it.

    Raises OSError, with the mend, if Weights & Biases cannot start, as without a login.
    """
    if recipe.tracker == "none":
        return
    settings = flat_settings(recipe.to_dict())
    if recipe.tracker != "wandb":
        accelerator.init_trackers(LOGS, config=settings)
        return
    logs = Path(accelerator.project_dir) / LOGS
    logs.mkdir(parents=True, exist_ok=True)  # else its files would go elsewhere
    given: dict[str, Any] = {"dir": str(logs), "name": f"{recipe.method}, seed {recipe.seed}"}
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    try:
        accelerator.init_trackers(project, config=settings, init_kwargs={"wandb": given})
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "wandb":
            raise
        raise OSError(
            f"tracker=wandb could not start ({error}): log in (wandb login), keep the run on this machine "
            "(WANDB_MODE=offline), or give --set tracker=tensorboard or tracker=none"
        ) from error
