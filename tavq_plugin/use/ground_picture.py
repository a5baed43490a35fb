"""The picture of `tavq show`: an image, and a heat map for each unit of a text, level by level."""

from __future__ import annotations

from pathlib import Path

from einops import rearrange

from tavq_plugin.evaluation.report.pictures import pyplot, save_figure
from tavq_plugin.use.ground import Grounding

COLUMNS = 8  # heat maps in a row
TITLE = "mass of the transport plan per place, in units of what a uniform plan gives; grey: nearly uniform"
MOST = 4.0  # times the uniform plan's mass: the end of the colours


def draw_grounding(grounding: Grounding, path: Path) -> None:
    """Draw the image and the heat maps of every unit; PNG. Units with a nearly uniform plan are grey."""
    plt = pyplot()
    image = rearrange(grounding.image, "c h w -> h w c").numpy()
    rows = [
        (level, list(range(start, min(start + COLUMNS, len(level.units)))))
        for level in grounding.levels
        for start in range(0, max(1, len(level.units)), COLUMNS)
    ]
    figure, axes = plt.subplots(
        len(rows), COLUMNS + 1, figsize=(1.6 * (COLUMNS + 1), 1.9 * len(rows)), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    drawn = None
    for line, (level, places) in zip(axes, rows, strict=True):
        line[0].imshow(image)
        line[0].set_title(f"level {level.level}: {level.granularity}s", fontsize=8)
        for axis, place in zip(line[1:], places, strict=False):
            axis.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255)
            grey = bool(level.near_uniform[place])
            shown = axis.imshow(level.heat[place], cmap="Greys" if grey else "viridis", alpha=0.6, vmin=0, vmax=MOST)
            drawn = drawn if grey else shown
            axis.set_title(_short(level.units[place]), fontsize=7, color="grey" if grey else "black")
    if drawn is not None:
        figure.colorbar(drawn, ax=axes, shrink=0.6, ticks=[0, 1, MOST]).ax.set_yticklabels(["0", "1×", f"{MOST:g}×"])
    figure.suptitle(TITLE, fontsize=9)
    save_figure(figure, path)


def _short(unit: str) -> str:
    """A unit as a title; a dollar sign would begin a formula."""
    unit = unit.replace("$", r"\$")
    return unit if len(unit) <= 24 else f"{unit[:23]}…"
