"""One picture with samples of all tasks that make or mark images: a row per run, the same samples in each column."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tavq_plugin.evaluation.report.pictures import pyplot, save_figure
from tavq_plugin.tasks.task import TaskResult

COLUMNS = 4  # samples of a row, at most
GAP = 0.06  # between the images of one sample, as a share of their height
LETTERS = 30  # of a line above a sample


def sample_picture(results: Mapping[str, Mapping[str, Mapping[int, TaskResult]]], path: Path) -> bool:
    """Draw the first samples of every run's first seed, task by task; PNG.

    Returns whether any task has samples with images; otherwise no file is written.
    """
    rows = [
        (task, run, shown)
        for task, runs in results.items()
        for run, seeds in runs.items()
        if (shown := [sample for sample in seeds[min(seeds)].samples if sample.images][:COLUMNS])
    ]
    if not rows:
        return False
    plt = pyplot()
    figure, axes = plt.subplots(
        len(rows), COLUMNS, figsize=(3.1 * COLUMNS, 1.55 * len(rows)), squeeze=False, layout="constrained"
    )
    last = ""
    for line, (task, run, shown) in zip(axes, rows, strict=True):
        for axis in line:
            axis.set_axis_off()
        for number, (axis, sample) in enumerate(zip(line, shown, strict=False)):
            axis.set_axis_on()
            axis.imshow(_side_by_side(sample.images), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if task != last:
                axis.set_title("\n".join(textwrap.wrap(sample.given, LETTERS)[:3]), fontsize=7)
            if sample.text:
                axis.set_xlabel("\n".join(textwrap.wrap(sample.text, LETTERS)[:3]), fontsize=7)
            if number == 0:
                axis.set_ylabel(f"{task}\n{run}", rotation=0, ha="right", va="center", fontsize=8)
        last = task
    save_figure(figure, path)
    return True


def _side_by_side(images: Sequence[Tensor]) -> np.ndarray:
    """The images of one sample in a row with white gaps, all as high as the highest; h w 3 uint8."""
    height = max(image.shape[1] for image in images)
    parts: list[Tensor] = []
    for image in images:
        if image.shape[1] != height:
            image = F.interpolate(image[None], (height, height * image.shape[2] // image.shape[1]), mode="nearest")[0]
        parts += [image, torch.full((3, height, max(1, round(GAP * height))), 255, dtype=torch.uint8)]
    return rearrange(torch.cat(parts[:-1], 2), "c h w -> h w c").numpy()
