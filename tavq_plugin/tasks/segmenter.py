"""The class of each pixel, by a network trained on real images and their label maps; it judges generated images."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.methods.base import drawn_from
from tavq_plugin.tasks.fit_model import fit_model
from tavq_plugin.tasks.pixel_net import PixelNet, judge_settings
from tavq_plugin.tasks.task import Workplace
from tavq_plugin.tasks.task_data import TaskData

BATCH_SIZE = 100  # images that are segmented at once


class Overlap(NamedTuple):
    """How well label maps agree with the true ones: intersection over union."""

    per_image: Tensor  #: n, the mean over the classes that the image's true map has
    of_all: float  #: the mean over the classes, each over the pixels of all images


def segmenter(data: TaskData, at: Workplace, *, quick: bool) -> PixelNet:
    """A trained network whose pixels' logits are those of `data.classes`; one for all runs.

    Raises ValueError for data without label maps.
    """
    if data.train.labels is None:
        raise ValueError("these images have no label maps: a segmenter cannot be trained")
    images, labels = data.train.images, data.train.labels
    settings = judge_settings(300, quick=quick)
    with drawn_from(settings.seed):
        model = PixelNet(images.shape[-1], len(data.classes))

    def loss_of(net: nn.Module, rows: Tensor, draw: torch.Generator) -> Tensor:
        logits = net(images[rows]).pixels.float()
        return F.cross_entropy(logits, labels[rows].long().to(logits.device))

    fit_model(
        model, loss_of, n=len(images), settings=settings, folder=at.shared / f"segmenter-{images.shape[-1]}",
        made_from={"data": data.fingerprint, "classes": list(data.classes)},
        progress=lambda done, total: at.progress("segmenter", done, total),
    )  # fmt: skip
    return model


@torch.no_grad()
def segmented(model: PixelNet, images: Tensor) -> Tensor:
    """The label map of each image; n 3 r r uint8 -> n r r uint8."""
    return torch.cat([model(part).pixels.argmax(1).to(torch.uint8).cpu() for part in images.split(BATCH_SIZE)])


def overlap(labels: Tensor, true: Tensor, classes: int) -> Overlap:
    """Intersection over union of label maps; n r r and n r r. Classes that neither side has are left out.

    >>> true = torch.tensor([[[0, 0], [1, 1]]])
    >>> overlap(torch.tensor([[[0, 0], [0, 1]]]), true, classes=3).per_image
    tensor([0.5833])
    """
    numbers = torch.arange(classes)
    ours, theirs = (F.one_hot(side.long(), classes).flatten(1, 2).bool() for side in (labels, true))
    both, either = (ours & theirs).sum(1).double(), (ours | theirs).sum(1).double()  # n k
    there = theirs.any(1)
    each = (both / either.clamp(min=1) * there).sum(1) / there.sum(1)
    known = numbers[either.sum(0) > 0]
    return Overlap(each.float(), (both.sum(0) / either.sum(0).clamp(min=1))[known].mean().item())
