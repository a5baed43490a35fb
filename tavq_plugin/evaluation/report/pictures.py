"""Pictures of runs: reconstructions side by side, and where the transport places a word in an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tavq_plugin.io.atomic import whole_file
from tavq_plugin.pixels import to_uint8


def reconstruction_grid(rows: dict[str, Tensor], path: Path) -> None:
    """Draw one row of images per name, from {name: n 3 h w in [-1, 1]}; PNG."""
    plt = pyplot()
    n = len(next(iter(rows.values())))
    figure, axes = plt.subplots(
        len(rows), n, figsize=(1.5 * n + 1.2, 1.5 * len(rows)), squeeze=False, layout="constrained"
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, rearrange(to_uint8(images), "n c h w -> n h w c").numpy(), strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    save_figure(figure, path)


class WordMap(NamedTuple):
    """How the mass of one word lies over an image."""

    title: str
    mass: Tensor  # h w
    box: tuple[float, ...] | None  # x0, y0, x1, y1 from 0 to 1, drawn as a frame; None: no frame


def word_regions(images: Tensor, maps: Sequence[Sequence[WordMap]], path: Path, *, title: str) -> None:
    """Draw each image, and beside it the mass that its codes send to some words; n 3 h w, n × k maps; PNG.

    Colours are relative to the word's mean over the grid: red is more, blue is less.
    """
    plt = pyplot()
    columns = 1 + max(len(row) for row in maps)
    figure, axes = plt.subplots(
        len(images), columns, figsize=(1.8 * columns, 2.0 * len(images)), squeeze=False, layout="constrained"
    )
    shown, drawn = rearrange(to_uint8(images), "n c h w -> n h w c").numpy(), None
    for axis in axes.flat:
        axis.set_axis_off()
    for line, image, row in zip(axes, shown, maps, strict=True):
        line[0].imshow(image)
        for axis, word in zip(line[1:], row, strict=False):
            relative = torch.log2(word.mass.clamp(min=1e-6) / word.mass.mean().clamp(min=1e-6)).clamp(-2, 2)
            smooth = F.interpolate(relative[None, None].float(), image.shape[:2], mode="bilinear")[0, 0]
            axis.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255)
            drawn = axis.imshow(smooth.numpy(), cmap="coolwarm", alpha=0.6, vmin=-2, vmax=2)
            axis.set_title(word.title, fontsize=9)
            if word.box is not None:
                h, w = image.shape[:2]
                (x0, x1), (y0, y1) = ([side * place - 0.5 for place in word.box[i::2]] for i, side in ((0, w), (1, h)))
                axis.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="black", linewidth=1.2))
    if drawn is not None:  # None if no image has a word
        figure.colorbar(drawn, ax=axes, shrink=0.6, ticks=[-2, 0, 2]).ax.set_yticklabels(["¼×", "mean", "4×"])
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG and close it."""
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    pyplot().close(figure)


def pyplot() -> Any:
    """Matplotlib's pyplot, drawing without a display. Raises ImportError, with the fix, if it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f'pictures need matplotlib ({error}): pip install "tavq-plugin[report]"') from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
