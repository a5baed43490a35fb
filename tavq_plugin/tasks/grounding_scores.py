"""How well boxes fit the objects of phrases, and the boxes that anyone can guess without looking at the picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tavq_plugin.tasks.phrases import Phrases
from tavq_plugin.tasks.task import Condition

RIGHT = 0.5  # intersection over union from which a box is right


def box_scores(found: Sequence[Tensor], phrases: Phrases, *, peaks: Tensor | None = None) -> Condition:
    """acc@.5 and mean_iou of each phrase's best box; with several boxes also acc@.5 of the best fitting one.

    Args:
        found: For each phrase its boxes, best first; k × (at least 1, 4).
        phrases: The k phrases with their true boxes.
        peaks: The place x, y where each phrase's object is most likely; k 2. If given, `pointing` says how often it is
            inside the true box.

    Raises:
        ValueError: The numbers of boxes and phrases differ.
    """
    from torchvision.ops import box_iou

    if len(found) != len(phrases):
        raise ValueError(f"got boxes for {len(found)} of {len(phrases)} phrases: give at least one box for each")
    overlaps = [box_iou(boxes, truth[None])[:, 0] for boxes, truth in zip(found, phrases.boxes, strict=True)]
    first = torch.tensor([float(overlap[0]) for overlap in overlaps], dtype=torch.float64)
    scores = {"acc@.5": (first >= RIGHT).double(), "mean_iou": first}
    most = max(map(len, found), default=1)
    if most > 1:
        best = torch.tensor([float(overlap.max()) for overlap in overlaps], dtype=torch.float64)
        scores[f"acc@.5 of {most} boxes"] = (best >= RIGHT).double()
    if peaks is not None:
        inside = (peaks >= phrases.boxes[:, :2]) & (peaks <= phrases.boxes[:, 2:])
        scores["pointing"] = inside.all(1).double()
    per_image = {name: phrases.per_image(values) for name, values in scores.items()}
    return Condition({name: values.nanmean().item() for name, values in per_image.items()}, per_image)


def mean_box(phrases: Phrases) -> Tensor:
    """The mean of all true boxes; 1 4."""
    return phrases.boxes.mean(0, keepdim=True)


def centre_box(phrases: Phrases) -> Tensor:
    """A box at the middle of the picture, as large as the true boxes are on average; 1 4."""
    half = (phrases.boxes[:, 2:] - phrases.boxes[:, :2]).mean(0, keepdim=True) / 2
    return torch.cat([0.5 - half, 0.5 + half], 1)
