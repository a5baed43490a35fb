"""Which coloured shapes and which background an image of drawn scenes shows, by a network trained on real scenes.

It judges generated images, and has seen none of them, nor any reconstruction.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.data.synthetic_scenes import BACKGROUNDS, COLOURS, SHAPES, Scene
from tavq_plugin.methods.base import drawn_from
from tavq_plugin.tasks.fit_model import FitSettings, fit_model
from tavq_plugin.tasks.pixel_net import FEATURES, PixelNet, judge_settings
from tavq_plugin.tasks.task import Workplace
from tavq_plugin.tasks.task_data import TaskData, TaskImages, drawn_data

PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
ATTRIBUTES = (*(f"{colour} {shape}" for colour, shape in PAIRS), *(f"{name} background" for name in BACKGROUNDS))
SMALLEST = 0.01  # share of the image that an object covers at least; a pair is as sure as its surest pixels of so many
DRAWN = (3000, 400)  # scenes to train and to measure on, where the data are no scenes
BATCH_SIZE = 100  # images that are judged at once


class Judged(NamedTuple):
    """What the classifier says of n images."""

    present: Tensor  #: n a bool, in the order of `ATTRIBUTES`
    features: Tensor  #: n c, for Fréchet distances


class AttributeClassifier(nn.Module):
    """Colour and shape of each pixel, the background of the image, and from them the pairs that are present."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.net = PixelNet(resolution, 1 + len(COLOURS) + 1 + len(SHAPES))
        self.background = nn.Linear(FEATURES, len(BACKGROUNDS))
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        self.threshold = nn.Parameter(torch.tensor(-1.0))  # of the log-probability of a pair at its surest pixels

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Logits b 3 r r uint8 -> colours b 9 r r, shapes b 7 r r, pairs b 48, backgrounds b 4; and features b c."""
        answers = self.net(images)
        colours, shapes = answers.pixels.split([1 + len(COLOURS), 1 + len(SHAPES)], 1)
        return colours, shapes, self.pairs(colours, shapes), self.background(answers.features), answers.features

    def pairs(self, colours: Tensor, shapes: Tensor) -> Tensor:
        """Logits of the pairs, above 0 where one is present, from those of each pixel; b 9 r r, b 7 r r -> b 48."""
        colour, shape = (part.log_softmax(1)[:, 1:].flatten(2) for part in (colours, shapes))
        both = (colour[:, :, None] + shape[:, None]).flatten(1, 2)  # b 48 r·r, the log-probability of each pair
        surest = both.topk(max(1, round(SMALLEST * both.shape[2])), dim=2).values.mean(2)
        return self.sharpness * (surest - self.threshold)

    @torch.no_grad()
    def judge(self, images: Tensor) -> Judged:
        """n 3 r r uint8 -> which attributes are present, and features."""
        present, features = [], []
        for part in images.split(BATCH_SIZE):
            _, _, pairs, background, seen = self(part)
            shown = F.one_hot(background.argmax(1), len(BACKGROUNDS)).bool()
            present.append(torch.cat([pairs > 0, shown], 1).cpu())
            features.append(seen.float().cpu())
        return Judged(torch.cat(present), torch.cat(features))


def attributes_of(scenes: Sequence[Scene]) -> Tensor:
    """Which attributes scenes have, and their texts name; n a bool."""
    present = torch.zeros(len(scenes), len(ATTRIBUTES), dtype=torch.bool)
    for row, scene in zip(present, scenes, strict=True):
        names = [f"{item.colour} {item.shape}" for item in scene.objects] + [f"{scene.background} background"]
        row[[ATTRIBUTES.index(name) for name in names]] = True
    return present


def asked_attributes(scenes: Sequence[Scene], *, seed: int = 0) -> Tensor:
    """The attributes that an image is asked for: all that its text names, and as many near misses; n a bool.

    A near miss of "red circle" has its colour or its shape, and is not in the scene; that of a background is another
    background. So half of what is asked for is absent, and saying the commonest answer always is right half the time.
    """
    asked = attributes_of(scenes)
    for i, (row, scene) in enumerate(zip(asked, scenes, strict=True)):
        draw = random.Random(f"{seed}/{i}")
        for item in scene.objects:
            near = [
                place
                for place, (colour, shape) in enumerate(PAIRS)
                if (colour == item.colour) != (shape == item.shape) and not row[place]
            ]
            row[draw.choice(near)] = True
        others = [len(PAIRS) + i for i, name in enumerate(BACKGROUNDS) if name != scene.background]
        row[draw.choice(others)] = True
    return asked


def agreement(present: Tensor, true: Tensor, asked: Tensor) -> Tensor:
    """The share of the asked attributes of each image that are present or absent as they should be; n a bool -> n.

    >>> row = torch.tensor([[True, False, True, False]])
    >>> agreement(row, torch.tensor([[True, True, True, True]]), torch.tensor([[True, True, False, False]]))
    tensor([0.5000])
    """
    return ((present == true) & asked).sum(1) / asked.sum(1)


def attribute_classifier(data: TaskData, at: Workplace, *, quick: bool) -> tuple[AttributeClassifier, float]:
    """The trained classifier for images of this size, and its agreement with held-out real scenes; one for all runs.

    Where the data are no drawn scenes, it is trained on scenes of its own.
    """
    resolution = data.train.images.shape[-1]
    if not data.train.scenes:
        n_train, n_eval = (n // 30 if quick else n for n in DRAWN)
        data = drawn_data(resolution=resolution, n_train=n_train, n_eval=n_eval)
    settings = judge_settings(500, quick=quick)
    folder = at.shared / f"attribute-classifier-{resolution}"
    model = _fitted(data, settings, folder, at)
    return model, real_agreement(model, data.held_out)


def real_agreement(model: AttributeClassifier, images: TaskImages) -> float:
    """Mean agreement of the classifier with real scenes."""
    present = model.judge(images.images).present
    return agreement(present, attributes_of(images.scenes), asked_attributes(images.scenes)).mean().item()


def _fitted(data: TaskData, settings: FitSettings, folder: Path, at: Workplace) -> AttributeClassifier:
    images, pairs = data.train.images, attributes_of(data.train.scenes)
    colours, shapes = _pixel_classes(data.train.scenes)
    backgrounds = pairs[:, len(PAIRS) :].float().argmax(1)
    with drawn_from(settings.seed):
        model = AttributeClassifier(images.shape[-1])

    def loss_of(net: nn.Module, rows: Tensor, draw: torch.Generator) -> Tensor:
        device = model.sharpness.device
        colour, shape, pair, background, _ = net(images[rows])
        wanted = pairs[rows, : len(PAIRS)].float().to(device)
        return (
            F.cross_entropy(colour.float(), colours[rows].long().to(device))
            + F.cross_entropy(shape.float(), shapes[rows].long().to(device))
            + F.cross_entropy(background.float(), backgrounds[rows].to(device))
            + F.binary_cross_entropy_with_logits(pair.float(), wanted)
        )

    made_from = {"data": data.fingerprint}
    label = "attribute classifier"
    fit_model(
        model, loss_of, n=len(images), settings=settings, folder=folder, made_from=made_from,
        progress=lambda done, total: at.progress(label, done, total),
    )  # fmt: skip
    return model


def _pixel_classes(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """The colour and the shape of each pixel, 0 for the background; n r r uint8 each."""
    colours, shapes = [], []
    for scene in scenes:
        mask = torch.from_numpy(scene.mask).long()
        of_colour = [0, *(list(COLOURS).index(item.colour) + 1 for item in scene.objects)]
        of_shape = [0, *(SHAPES.index(item.shape) + 1 for item in scene.objects)]
        colours.append(torch.tensor(of_colour, dtype=torch.uint8)[mask])
        shapes.append(torch.tensor(of_shape, dtype=torch.uint8)[mask])
    return torch.stack(colours), torch.stack(shapes)
