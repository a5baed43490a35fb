"""Pictures of a run: reconstructions side by side, and where in an image a word's mass lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tavq_plugin.io.atomic import whole_file
from tavq_plugin.pixels import to_uint8


def reconstruction_grid(rows: dict[str, Tensor], path: Path) -> None:
    """One row of images a name, the same images in each; {name: n 3 h w in [-1, 1]} -> a PNG."""
    plt = _pyplot()
    n = len(next(iter(rows.values())))
    figure, axes = plt.subplots(
        len(rows), n, figsize=(1.5 * n + 1.2, 1.5 * len(rows)), squeeze=False, layout="constrained"
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, rearrange(to_uint8(images), "n c h w -> n h w c").numpy(), strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    _save(figure, path)


def word_regions(
    images: Tensor, words: Sequence[Sequence[str]], maps: Sequence[Tensor], path: Path, *, title: str
) -> None:
    """Each image beside the share of each code's mass that goes to a word; n 3 h w, n × k words, n × (k g g) -> PNG.

    A map is shown relative to what the word gets on average over the grid: red = more, blue = less.
    """
    plt = _pyplot()
    columns = 1 + max(len(row) for row in words)
    figure, axes = plt.subplots(
        len(images), columns, figsize=(1.8 * columns, 2.0 * len(images)), squeeze=False, layout="constrained"
    )
    shown = rearrange(to_uint8(images), "n c h w -> n h w c").numpy()
    for axis in axes.flat:
        axis.set_axis_off()
    for line, image, names, grids in zip(axes, shown, words, maps, strict=True):
        line[0].imshow(image)
        for axis, name, grid in zip(line[1:], names, grids, strict=False):
            relative = torch.log2(grid.clamp(min=1e-6) / grid.mean().clamp(min=1e-6)).clamp(-2, 2)
            smooth = F.interpolate(relative[None, None].float(), image.shape[:2], mode="bilinear")[0, 0]
            axis.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255)
            drawn = axis.imshow(smooth.numpy(), cmap="coolwarm", alpha=0.6, vmin=-2, vmax=2)
            axis.set_title(name, fontsize=9)
    figure.colorbar(drawn, ax=axes, shrink=0.6, ticks=[-2, 0, 2]).ax.set_yticklabels(["¼×", "mean", "4×"])
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _save(figure, path: Path) -> None:
    """Write a figure as PNG and close it."""
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    _pyplot().close(figure)


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f'pictures need matplotlib ({error}): pip install "tavq-plugin[report]"') from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
