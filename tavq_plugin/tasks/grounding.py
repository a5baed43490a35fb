"""Grounding: find the object that a phrase names, from the codes of its image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tavq_plugin.methods.base import drawn_from
from tavq_plugin.tasks.code_embedding import CodeEmbedding
from tavq_plugin.tasks.fit_model import FitSettings, fit_model
from tavq_plugin.tasks.grounding_head import GroundingHead, best_boxes, grounding_loss
from tavq_plugin.tasks.grounding_scores import box_scores, centre_box, mean_box
from tavq_plugin.tasks.phrases import Phrases, unique_phrases, word_rows, words_of
from tavq_plugin.tasks.pixel_patches import PixelPatches
from tavq_plugin.tasks.plan_grounding import CHOICE_IMAGES, PLAN, PlanNotAtHand, plan_conditions
from tavq_plugin.tasks.task import (
    OF_CODES,
    Condition,
    EncodedRun,
    ModelSettings,
    Sample,
    TaskResult,
    TaskSettings,
    Workplace,
)
from tavq_plugin.tasks.task_data import TaskData
from tavq_plugin.tasks.tokens import LevelGrid

LONGEST = 16  # words of a phrase; later ones are not read
CANDIDATES = 3  # boxes of a phrase, after non-maximum suppression
SHOWN = 4  # samples
SAMPLE_SIDE = 128  # pixels of a sample, at least
BATCH = 128  # phrases of a forward pass


@dataclass(frozen=True)
class _Reading:
    """What a head reads of the images, and where it is kept. All else is the same for every head."""

    train: Tensor  # n …: tokens or pixels
    held_out: Tensor
    places: Callable[[], nn.Module]  # a fresh module that embeds them
    grids: Sequence[LevelGrid]
    folder: Path
    made_from: Mapping[str, Any]
    seed: int


class _Questions:
    """The phrases of both splits, and the vectors of their words."""

    def __init__(self, data: TaskData, at: Workplace) -> None:
        self.train, self.held_out = unique_phrases(data.train), unique_phrases(data.held_out)
        vocabulary = sorted({word for text in (*self.train.texts, *self.held_out.texts) for word in words_of(text)})
        self.vectors = at.encoder.encode(vocabulary)
        self.train_words, self.held_out_words = (
            word_rows(side.texts, vocabulary, LONGEST) for side in (self.train, self.held_out)
        )


class Grounding:
    """Trains a head that finds the object of a phrase, and measures how well its box fits.

    Only phrases that name one object of their image are asked for. All figures are averaged first over the phrases of
    an image, then over the images. Beside the trained heads stands what needs no training: the mass that the transport
    of an aligned run sends to the words of a phrase.
    """

    name = "grounding"
    main_metric = "acc@.5"
    smaller_is_better = False

    def unfit(self, data: TaskData) -> str:
        """Why these data cannot serve this task, with the mend; "" if they can."""
        for split, images in (("training", data.train), ("held-out", data.held_out)):
            if not any(box["unique"] and words_of(box["phrase"]) for own in images.boxes for box in own):
                return (
                    f"no {split} image of {data.name} has a box whose phrase names one object alone: give data with "
                    "boxes, such as drawn scenes, COCO or RefCOCO"
                )
        return ""

    def settings(self, *, quick: bool) -> TaskSettings:
        """Settings that two CPU cores can train."""
        fit = FitSettings(steps=60 if quick else 1000, learning_rate=3e-3, warmup=10 if quick else 100)
        return TaskSettings(ModelSettings(width=64, layers=2), fit, quick=quick)

    def run(self, run: EncodedRun, data: TaskData, settings: TaskSettings, at: Workplace) -> TaskResult:
        """Train heads on the codes and on the controls, and measure the boxes of the held-out phrases.

        Raises ValueError for data without a phrase that names one object, or with a box outside its picture.
        """
        if why := self.unfit(data):
            raise ValueError(why)
        asked = _Questions(data, at)
        made_from = {"data": data.fingerprint, "encoder": at.encoder.fingerprint, "model": vars(settings.model)}
        boxes: dict[str, list[Tensor]] = {}
        parameters: dict[str, int] = {}
        for name, reading in _readings(run, data, settings, at.own / self.name, at.shared / self.name).items():
            with drawn_from(reading.seed):
                head = GroundingHead(reading.places(), reading.grids, asked.vectors, settings.model, longest=LONGEST)
            fit_model(
                head,
                partial(_loss, reading, asked),
                n=len(asked.train),
                settings=replace(settings.fit, seed=reading.seed),
                folder=reading.folder,
                made_from={**made_from, **reading.made_from, "reads": name},
                progress=partial(at.progress, f"{self.name}, {name}"),
            )
            boxes[name] = _found_boxes(head, reading, asked)
            parameters[name] = sum(parameter.numel() for parameter in head.parameters())
        conditions = {name: box_scores(found, asked.held_out) for name, found in boxes.items()} | {
            "mean box": _fixed_box(mean_box(asked.train), asked.held_out),
            "centre box": _fixed_box(centre_box(asked.train), asked.held_out),
        }
        missing: dict[str, str] = {}
        protocol: dict[str, Any] = {
            "training phrases": len(asked.train),
            "held-out phrases": len(asked.held_out),
            "held-out images with phrases": len(asked.held_out.images.unique()),
            "steps": settings.fit.steps,
            "parameters": parameters,
        }
        try:
            of_plan, protocol[PLAN] = plan_conditions(
                run, data, asked.train, asked.held_out, at.encoder,
                choice_images=CHOICE_IMAGES // 10 if settings.quick else CHOICE_IMAGES,
            )  # fmt: skip
            conditions |= of_plan
        except PlanNotAtHand as reason:
            missing[PLAN] = str(reason)
        samples = _samples(boxes[OF_CODES], asked.held_out, data.held_out.images)
        return TaskResult(conditions, missing, samples, protocol)


def _readings(run: EncodedRun, data: TaskData, settings: TaskSettings, own: Path, shared: Path) -> dict[str, _Reading]:
    model, grids = settings.model, run.train.layout.grids
    codes = _Reading(
        run.train.tokens,
        run.held_out.tokens,
        lambda: CodeEmbedding(run.train, model.width, kind=model.embedding),
        grids,
        own / "codes",
        {"train": run.train.fingerprint, "grids": [list(grid) for grid in grids]},
        settings.fit.seed or run.seed,
    )
    (height, width, _), resolution = grids[0], data.train.images.shape[-1]
    return {
        OF_CODES: codes,
        "shuffled codes": replace(  # every image has the tokens of the image before it
            codes,
            train=codes.train.roll(1, 0),
            held_out=codes.held_out.roll(1, 0),
            folder=own / "shuffled_codes",
        ),
        "learnt embedding": replace(
            codes,
            places=lambda: CodeEmbedding(run.train, model.width, kind="indices"),
            folder=own / "learnt_embedding",
        ),
        "pixels": _Reading(
            data.train.images,
            data.held_out.images,
            lambda: PixelPatches(resolution, grids[0], model.width),
            grids[:1],
            shared / f"pixels_{height}x{width}",
            {"grid": [height, width]},
            settings.fit.seed,  # one model for all runs
        ),
    }


def _loss(reading: _Reading, asked: _Questions, head: nn.Module, rows: Tensor, draw: torch.Generator) -> Tensor:
    """The loss of some training phrases; rows b -> scalar."""
    device = next(head.parameters()).device
    given = reading.train[asked.train.images[rows]].to(device)
    found = head(given, asked.train_words[rows].to(device))
    return grounding_loss(found, asked.train.boxes[rows].to(device), reading.grids)


@torch.inference_mode()
def _found_boxes(head: GroundingHead, reading: _Reading, asked: _Questions) -> list[Tensor]:
    """The best boxes of each held-out phrase; k × (at most `CANDIDATES`, 4)."""
    device, boxes = next(head.parameters()).device, list[Tensor]()
    head.eval()
    for rows in torch.arange(len(asked.held_out)).split(BATCH):
        given = reading.held_out[asked.held_out.images[rows]].to(device)
        found = head(given, asked.held_out_words[rows].to(device))
        boxes += [best.cpu() for best in best_boxes(found, CANDIDATES)]
    return boxes


def _fixed_box(box: Tensor, phrases: Phrases) -> Condition:
    """The scores of one box for every phrase; it points at its middle."""
    middle = (box[:, :2] + box[:, 2:]) / 2
    return box_scores([box] * len(phrases), phrases, peaks=middle.expand(len(phrases), 2))


def _samples(boxes: Sequence[Tensor], phrases: Phrases, images: Tensor) -> list[Sample]:
    """The first phrase of each of the first images, with the true box in white and the one that was found in red."""
    from torchvision.utils import draw_bounding_boxes

    made, shown = list[Sample](), set[int]()
    for text, row, truth, found in zip(phrases.texts, phrases.images.tolist(), phrases.boxes, boxes, strict=True):
        if row in shown or len(shown) == SHOWN:
            continue
        shown.add(row)
        times = -(-SAMPLE_SIDE // images.shape[-1])
        large = images[row].repeat_interleave(times, 1).repeat_interleave(times, 2)
        corners = (torch.stack([truth, found[0]]) * (large.shape[-1] - 1)).round()
        picture = draw_bounding_boxes(large, corners, colors=["white", "red"], width=2)
        made.append(Sample(text, (picture,), _in_words(found[0]), _in_words(truth)))
    return made


def _in_words(box: Tensor) -> str:
    return "box " + " ".join(f"{corner:.2f}" for corner in box.tolist())
