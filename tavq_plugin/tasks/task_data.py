"""Images with what the tasks ask about: captions, boxes, questions with answers, and label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tavq_plugin.data.synthetic_scenes import SHAPES, Scene, scenes

SCENES_SEED = 7  # no tokenizer of ours was trained on scenes of this seed
BACKGROUND = "background"


@dataclass(frozen=True)
class TaskImages:
    """One split. What images do not have is empty, and the tasks that need it say so."""

    images: Tensor  #: n 3 r r uint8
    captions: Sequence[Sequence[str]] = ()  #: n, for each image one or more captions; the first one is trained on
    boxes: Sequence[Sequence[Mapping[str, Any]]] = ()  #: n, for each image {"phrase", "box" in 0..1, "unique"}
    questions: Sequence[Sequence[Mapping[str, str]]] = ()  #: n, for each image {"question", "answer"}
    labels: Tensor | None = None  #: n r r uint8: the class of each pixel
    scenes: Sequence[Scene] = ()  #: n, of drawn images

    def __len__(self) -> int:
        return len(self.images)


class TaskData(NamedTuple):
    """The images that models of a task are trained on, and the held-out ones that they are measured on."""

    name: str
    train: TaskImages
    held_out: TaskImages
    classes: tuple[str, ...]  # of the label maps; () without any
    fingerprint: str  # of the images and their annotations


def drawn_data(*, resolution: int, n_train: int, n_eval: int, seed: int = SCENES_SEED) -> TaskData:
    """Drawn scenes; the classes of their label maps are the background and the shapes.

    >>> data = drawn_data(resolution=32, n_train=2, n_eval=1)
    >>> len(data.train), len(data.held_out), data.classes[:3], data.train.labels.shape
    (2, 1, ('background', 'circle', 'square'), torch.Size([2, 32, 32]))
    """
    drawn = scenes(n_train + n_eval, seed=seed, resolution=resolution)
    parts = [slice(0, n_train), slice(n_train, n_train + n_eval)]
    train, held_out = (_scene_images(drawn.images[part], drawn.scenes[part]) for part in parts)
    name = f"scenes of seed {seed}, {resolution} px"
    return TaskData(name, train, held_out, (BACKGROUND, *SHAPES), f"{name}, {n_train} + {n_eval}")


def _scene_images(images: Tensor, drawn: Sequence[Scene]) -> TaskImages:
    labels = np.zeros((len(drawn), *images.shape[2:]), dtype=np.uint8)
    for label, scene in zip(labels, drawn, strict=True):
        of_object = np.array([0, *(SHAPES.index(item.shape) + 1 for item in scene.objects)], dtype=np.uint8)
        label[:] = of_object[scene.mask]
    return TaskImages(
        images,
        captions=[(scene.caption, scene.text) for scene in drawn],
        boxes=[scene.boxes for scene in drawn],
        questions=[scene.qa for scene in drawn],
        labels=torch.from_numpy(labels),
        scenes=drawn,
    )
