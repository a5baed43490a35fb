"""What a task that reads images reads: the codes, and the controls in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tavq_plugin.tasks.code_embedding import CodeEmbedding
from tavq_plugin.tasks.pixel_patches import PixelPatches
from tavq_plugin.tasks.task import OF_CODES, EncodedRun, ModelSettings, TaskSettings, Workplace
from tavq_plugin.tasks.task_data import TaskData

SHUFFLED, LEARNT, PIXELS = "shuffled codes", "learnt embedding", "pixels"


@dataclass(frozen=True)
class ReadingCondition:
    """What a model reads of each image, and where it is kept."""

    name: str
    train: Tensor  #: n s int64, tokens, or n 3 r r uint8
    held_out: Tensor
    prefix: Callable[[], CodeEmbedding | PixelPatches]  #: makes what embeds them, with new weights
    seed: int  #: of the model
    folder: Path
    made_from: Mapping[str, Any]  #: what the model depends on


def reading_conditions(
    task: str, run: EncodedRun, data: TaskData, settings: TaskSettings, at: Workplace
) -> list[ReadingCondition]:
    """The codes; other images' codes; the codes as rows to learn; and the pixels, the upper bound for all runs.

    The model's seed is the run's, unless the settings have one. The model on pixels reads no codes: its seed is that
    of the settings alone, and it is kept for all runs with the same grid.
    """
    sizes, seed = settings.model, settings.fit.seed or run.seed
    made_from = {"data": data.fingerprint, "tokens": [run.train.fingerprint, run.held_out.fingerprint]}
    kinds = {OF_CODES: sizes.embedding, SHUFFLED: sizes.embedding, LEARNT: "indices"}
    conditions = []
    for name, kind in kinds.items():
        train, held_out = run.train.tokens, run.held_out.tokens
        if name == SHUFFLED:
            train, held_out = (tokens[other_rows(len(tokens), seed)] for tokens in (train, held_out))
        folder = at.own / task / name.replace(" ", "-")
        prefix = _code_prefix(run, sizes, kind)
        conditions.append(
            ReadingCondition(name, train, held_out, prefix, seed, folder, made_from | {"condition": name})
        )
    grid, images = run.train.layout.grids[0], (data.train.images, data.held_out.images)
    of_pixels = {"data": data.fingerprint, "condition": PIXELS, "grid": [grid.height, grid.width]}
    folder = at.shared / task / f"pixels-{grid.height}x{grid.width}"

    def pixel_prefix() -> PixelPatches:
        return PixelPatches(images[0].shape[-1], grid, sizes.width)

    conditions.append(ReadingCondition(PIXELS, *images, pixel_prefix, settings.fit.seed, folder, of_pixels))
    return conditions


def other_rows(n: int, seed: int) -> Tensor:
    """For each image another image's row, each once; n int64. ValueError for a single image.

    >>> rows = other_rows(5, seed=0)
    >>> bool((rows != torch.arange(5)).all()), sorted(rows.tolist())
    (True, [0, 1, 2, 3, 4])
    """
    if n < 2:
        raise ValueError(f"got {n} image: shuffled codes need at least two")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def _code_prefix(run: EncodedRun, sizes: ModelSettings, kind: str) -> Callable[[], CodeEmbedding]:
    return lambda: CodeEmbedding(run.train, sizes.width, kind=kind)
