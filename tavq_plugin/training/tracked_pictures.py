"""The pictures that a tracker gets: a few images, beside their reconstructions and the codes of each level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import pi
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from tavq_plugin.distributed import is_sharded
from tavq_plugin.hosts.summary import logger
from tavq_plugin.pixels import to_float, to_uint8
from tavq_plugin.side_effects import eval_without_trace
from tavq_plugin.training.build_host import find_reconstruction
from tavq_plugin.training.diagnostic_figures import ALWAYS, Row

if TYPE_CHECKING:
    from tavq_plugin.training.loop import TrainingLoop

IMAGES = 4
TIMES = 20  # about as often in a run, at most
NAME = "original, reconstruction, codes of levels 1 to {levels}"
GOLDEN = 0.6180339887498949  # share of the circle of hues between a code and the next: neighbours differ


def log_pictures(loop: TrainingLoop, history: Sequence[Row]) -> None:
    """Give the tracker its pictures, if they are due in the last row of the history; every process calls it.

    Training is not changed, and no random number is drawn.
    """
    if loop.recipe.tracker == "none" or not pictures_due(loop, history):
        return
    if is_sharded(loop.module):
        logger.warning("the tracker gets no pictures, because this run shards its model; it gets all figures")
        return
    sheet, levels = picture_sheet(loop)
    for tracker in loop.accelerator.trackers:
        options: dict[str, Any] = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({NAME.format(levels=levels): sheet[None]}, step=loop.number, **options)


def pictures_due(loop: TrainingLoop, history: Sequence[Row]) -> bool:
    """Whether the last row has diagnostics, and is the first such row of its twentieth of the steps, or the last."""
    row = history[-1]
    if ALWAYS not in row:
        return False
    former = next((other["step"] for other in islice(reversed(history), 1, None) if ALWAYS in other), None)
    every = max(1, (loop.phase.last - loop.phase.first) // TIMES)
    return former is None or row["step"] // every > former // every or loop.number == loop.phase.last


def picture_sheet(loop: TrainingLoop) -> tuple[NDArray[np.uint8], int]:
    """One row per image, (n r) (c r) 3: the image, its reconstruction and its codes; and the number of levels.

    The images are the first held-out ones, or training images if none are held out.
    """
    corpus, tokenizer = loop.corpus, loop.tokenizer
    start = corpus.held_out_rows.start if len(corpus.held_out_rows) else 0
    images = to_float(corpus.images[start : start + IMAGES]).to(loop.accelerator.device)
    # compiled parts would be compiled again for this mode and number of images
    with torch.compiler.set_stance("force_eager"), eval_without_trace(tokenizer):
        output, codes = tokenizer(images)
        reconstruction = find_reconstruction(output)
    assert reconstruction is not None  # a host without one is refused before training
    side = images.shape[-1]
    maps = [code_colours(level.indices, side) for level in codes.levels]
    parts = [to_uint8(images), to_uint8(reconstruction.float()), *maps]
    return rearrange([part.cpu() for part in parts], "column row c h w -> (row h) (column w) c").numpy(), len(maps)


def code_colours(indices: Tensor, side: int) -> Tensor:
    """A map of colours, one per code and the same at every step; b h w -> b 3 r r uint8.

    >>> code_colours(torch.tensor([[[0, 1]]]), 2)[0, :, 0].tolist()
    [[255, 33], [64, 100], [64, 249]]
    """
    hue = rearrange(indices.double() * GOLDEN % 1, "b h w -> b 1 h w")
    phase = torch.arange(3, device=indices.device, dtype=torch.float64).view(3, 1, 1) / 3
    colours = 127.5 * (1 + torch.cos(2 * pi * (hue - phase)))
    return F.interpolate(colours, (side, side), mode="nearest-exact").round().to(torch.uint8)
