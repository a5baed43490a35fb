"""Semantic synthesis: whether images made from a label map show the classes where the map has them."""

from __future__ import annotations

from dataclasses import asdict
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.tasks.decode_tokens import decode_tokens
from tavq_plugin.tasks.fit_masked import (
    LEARNT,
    SAMPLES,
    fit_masked,
    made_prompt,
    masked_settings,
    parameters_of,
    sampling_of,
)
from tavq_plugin.tasks.masked_model import MaskedModel, Prompt, sample
from tavq_plugin.tasks.pixel_net import PixelNet
from tavq_plugin.tasks.reading_conditions import other_rows
from tavq_plugin.tasks.sampling import SamplingSettings
from tavq_plugin.tasks.segmenter import overlap, segmented, segmenter
from tavq_plugin.tasks.task import OF_CODES, Condition, EncodedRun, Sample, TaskResult, TaskSettings, Workplace
from tavq_plugin.tasks.task_data import TaskData
from tavq_plugin.tasks.tokens import TokenLayout

STEPS = 300  # of the model's training
SAMPLING = SamplingSettings(guidance=1.5)
SHUFFLED = "shuffled label maps"
PER_PLACE = 4  # the labels of a place are read as 4 × 4 shares of each class


class LabelCondition(nn.Module):
    """Adds to each place what the label map has there: the share of each class in 4 × 4 parts of the place's patch.

    b r r uint8 -> Prompt without a prefix. Raises ValueError for label maps with unknown classes or of another size.
    """

    def __init__(self, layout: TokenLayout, resolution: int, classes: int, width: int) -> None:
        super().__init__()
        self.layout, self.resolution, self.classes = layout, resolution, classes
        self.project = nn.ModuleList(nn.Linear(classes * PER_PLACE**2, width) for _ in layout.grids)

    def forward(self, labels: Tensor) -> Prompt:
        """b r r uint8 -> what is added at each place."""
        if tuple(labels.shape[1:]) != (self.resolution, self.resolution):
            raise ValueError(
                f"got label maps of {tuple(labels.shape[1:])} pixels: give {self.resolution} × {self.resolution}, the "
                "size that the model was trained on"
            )
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ValueError(
                f"got the classes {int(labels.min())} … {int(labels.max())}: the model knows 0 … {self.classes - 1}"
            )
        device = next(self.parameters()).device
        shares = rearrange(F.one_hot(labels.long().to(device), self.classes).float(), "b h w k -> b k h w")
        parts = []
        for grid, project in zip(self.layout.grids, self.project, strict=True):
            side = (grid.height * PER_PLACE, grid.width * PER_PLACE)
            pooled = F.adaptive_avg_pool2d(shares, side)
            parts.append(project(rearrange(pooled, "b k (h p) (w q) -> b (h w) (k p q)", p=PER_PLACE, q=PER_PLACE)))
        at_places = torch.cat(parts, 1)
        return Prompt(at_places[:, :0], at_places.new_zeros(len(labels), 0, dtype=torch.bool), at_places)


class SemanticSynthesis:
    """One image for the label map of each held-out image; a segmenter trained on real images reads the map again."""

    name: ClassVar[str] = "semantic-synthesis"
    main_metric: ClassVar[str] = "mean_iou"
    smaller_is_better: ClassVar[bool] = False

    def unfit(self, data: TaskData) -> str:
        """Label maps are needed."""
        if data.train.labels is not None and data.held_out.labels is not None:
            return ""
        return "semantic-synthesis needs label maps, and these images have none: give data with masks"

    def settings(self, *, quick: bool) -> TaskSettings:
        """The task's own default settings."""
        return masked_settings(SAMPLING, steps=STEPS, quick=quick)

    def run(self, run: EncodedRun, data: TaskData, settings: TaskSettings, at: Workplace) -> TaskResult:
        """Train on the codes, with learnt rows and on wrong pairs; sample for each map; measure beside controls."""
        labels, true = data.train.labels, data.held_out.labels
        if labels is None or true is None:
            raise ValueError(self.unfit(data))
        net = segmenter(data, at, quick=settings.quick)
        seed = settings.fit.seed or run.seed
        maps = {
            OF_CODES: (labels, true),
            LEARNT: (labels, true),
            SHUFFLED: (labels[other_rows(len(labels), seed)], true[other_rows(len(true), seed)]),
        }
        how = sampling_of(settings, run)
        conditions, shown, parameters = {}, {}, 0
        for name, (trained_on, given) in maps.items():
            model = label_model(run, data, trained_on, settings, at, name=name)
            shown[name] = decode_tokens(run, from_labels(model, given, how))
            conditions[name] = _judged(net, shown[name], true, data)
            parameters = parameters_of(model)
        commonest = labels.long().mode(0).values.to(true.dtype)
        conditions["majority"] = _scored(commonest.expand_as(true), true, data)
        conditions["reconstructions"] = _judged(net, decode_tokens(run, run.held_out.tokens), true, data)
        conditions["real images"] = _judged(net, data.held_out.images, true, data)
        rows = zip(true[:SAMPLES], shown[OF_CODES], data.held_out.images, strict=False)
        return TaskResult(
            conditions,
            samples=[Sample("", (_drawn(labels, data), made, image)) for labels, made, image in rows],
            protocol={
                "images": len(data.held_out),
                "classes": list(data.classes),
                "segmenter": "conditions reconstructions and real images show what it can find at best",
                "parameters": parameters,
                "sampling": asdict(how),
            },
        )


def label_model(
    run: EncodedRun, data: TaskData, labels: Tensor, settings: TaskSettings, at: Workplace, *, name: str = OF_CODES
) -> MaskedModel:
    """A model of the run's codes given a label map for each training image."""
    resolution = labels.shape[-1]
    return fit_masked(
        run, settings, at.own / SemanticSynthesis.name / name.replace(" ", "-"), at,
        label=f"{SemanticSynthesis.name}, {name}", embedding="indices" if name == LEARNT else None,
        condition=lambda: LabelCondition(run.train.layout, resolution, len(data.classes), settings.model.width),
        inputs=lambda rows: labels[rows],
        made_from={"classes": list(data.classes), "pairs": "shuffled" if name == SHUFFLED else "true"},
    )  # fmt: skip


@torch.no_grad()
def from_labels(model: MaskedModel, labels: Tensor, settings: SamplingSettings = SAMPLING) -> Tensor:
    """Tokens for label maps; b r r uint8 -> b n. Raises ValueError as `LabelCondition` does."""
    prompt = made_prompt(model, labels)
    return sample(model, torch.full((len(labels), model.layout.length), model.layout.mask), settings, prompt=prompt)


def _judged(net: PixelNet, images: Tensor, true: Tensor, data: TaskData) -> Condition:
    return _scored(segmented(net, images), true, data)


def _scored(labels: Tensor, true: Tensor, data: TaskData) -> Condition:
    found = overlap(labels, true, len(data.classes))
    values = {"mean_iou": found.per_image.mean().item(), "mean_iou_of_all": found.of_all}
    return Condition(values, {"mean_iou": found.per_image})


def _drawn(labels: Tensor, data: TaskData) -> Tensor:
    """A label map as a picture, one hue per class; r r -> 3 r r uint8."""
    turn = torch.arange(len(data.classes)) / max(1, len(data.classes) - 1)
    hues = torch.stack([(torch.cos(6.28 * (0.8 * turn + shift)) + 1) / 2 for shift in (0, 1 / 3, 2 / 3)], 1)
    hues[0] = 0.2  # the background is dark grey
    return (255 * hues[labels.long()]).to(torch.uint8).permute(2, 0, 1).contiguous()
