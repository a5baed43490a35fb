"""Train the small model of a task with progress, checkpoints and resume, through accelerate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tavq_plugin.io.atomic import read_json, save_json, save_tensors
from tavq_plugin.io.ownership import claim
from tavq_plugin.training.checkpoint import Checkpoints
from tavq_plugin.training.sampler import BatchSampler

MAKER = "tavq task"
WEIGHTS, SETTINGS = "model.safetensors", "model.json"
CHECKPOINTS = 4  # per training

LossOf = Callable[[nn.Module, Tensor, torch.Generator], Tensor]
"""(model, rows of the training images b int64, random numbers of this step) -> scalar loss."""


@dataclass(frozen=True)
class FitSettings:
    """How a task's model is trained. Raises ValueError for a number out of its range."""

    steps: int = 1000  #: optimizer steps
    batch_size: int = 32  #: images of a step
    learning_rate: float = 1e-3  #: the peak; it falls to 0 by half a cosine
    warmup: int = 50  #: optimizer steps over which the rate rises
    weight_decay: float = 0.01
    precision: str = "no"  #: "no": float32; "bf16": autocast
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.precision not in ("no", "bf16"):
            raise ValueError(f'precision must be "no" or "bf16", got {self.precision!r}')


def fit_model(
    model: nn.Module,
    loss_of: LossOf,
    *,
    n: int,
    settings: FitSettings,
    folder: Path,
    made_from: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """The model, trained; kept in `folder`, loaded from there if it is finished, and resumed if it was interrupted.

    The loss of a step depends on the seed and the step's number alone, so a resumed training ends as one without a
    stop.

    Args:
        model: Trained in place, on a GPU if there is one; returned in eval mode.
        loss_of: The loss of a step.
        n: Number of training images.
        settings: How it is trained.
        folder: Where it is kept.
        made_from: What the model depends on besides `settings`: fingerprints, sizes. A folder with another model is
            trained anew.
        progress: Called with the steps that are done, and all steps.

    Raises:
        FloatingPointError: The loss is not finite.
        FileExistsError: A file that we did not write is in the way.
    """
    from accelerate import Accelerator
    from transformers import get_cosine_schedule_with_warmup

    asked = {"fit": asdict(settings), "n": n, "made_from": dict(made_from)}
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=settings.precision)
    if _finished(folder, asked, model):
        return model.to(accelerator.device).eval()
    claim(folder, (WEIGHTS, SETTINGS, "training/"), MAKER)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, min(settings.warmup, settings.steps), settings.steps)
    trained, optimizer = accelerator.prepare(model, optimizer)
    checkpoints, start = Checkpoints(folder / "training"), 0
    state = {"asked": asked}
    latest = checkpoints.latest()
    if latest is not None and latest[0]["asked"] == asked:
        state = latest[0]
        start = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    elif latest is not None:
        checkpoints.clear()
    sampler = BatchSampler(n, batch_size=settings.batch_size, seed=settings.seed)
    every = max(1, settings.steps // CHECKPOINTS)
    model.train()
    for step in range(start, settings.steps):
        draw = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        with accelerator.autocast():
            loss = loss_of(trained, sampler(step), draw)
        if not loss.isfinite():
            raise FloatingPointError(f"step {step}: the loss is {loss.item()}; lower learning_rate ({folder})")
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, settings.steps)
        if (step + 1) % every == 0 and step + 1 < settings.steps:
            parts = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
            checkpoints.save(step + 1, {"asked": asked, "step": step + 1, **parts}, [])
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_tensors(weights, folder / WEIGHTS)
    save_json(folder / SETTINGS, asked)  # last: if it exists, the weights are complete
    checkpoints.clear()
    return model.eval()


def _finished(folder: Path, asked: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether the folder holds this model, trained; it is loaded then."""
    from safetensors.torch import load_file

    if read_json(folder / SETTINGS, strict=False) != asked or not (folder / WEIGHTS).is_file():
        return False
    model.load_state_dict(load_file(folder / WEIGHTS))
    return True
