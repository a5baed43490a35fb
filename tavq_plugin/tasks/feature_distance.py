"""Fréchet distances of generated images to real ones, each named after the network whose features it compares."""

from __future__ import annotations

import torch
from torch import Tensor

from tavq_plugin.evaluation.metrics.frechet import frechet_distance
from tavq_plugin.networks.frozen import mobilenet
from tavq_plugin.tasks.attribute_classifier import AttributeClassifier
from tavq_plugin.tasks.task import Workplace

OF_CLASSIFIER, OF_MOBILENET = "fd_scenes_classifier", "fd_mobilenet"


class FeatureDistances:
    """Distances to one set of real images; `missing` says why a network takes no part.

    None of them is FID. Few images bias them upwards, so compare sets of one size only.
    """

    def __init__(self, real: Tensor, classifier: AttributeClassifier, at: Workplace) -> None:
        self.missing: dict[str, str] = {}
        self._features = {OF_CLASSIFIER: lambda images: classifier.judge(images).features}
        try:
            judge = mobilenet(at.weights)
            self._features[OF_MOBILENET] = lambda images: judge(images).features
        except (FileNotFoundError, ImportError) as error:
            self.missing[OF_MOBILENET] = str(error)
        with torch.no_grad():
            self._real = {name: of(real) for name, of in self._features.items()}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, float]:
        """Name → distance of the images, n 3 r r uint8, to the real ones."""
        return {name: frechet_distance(self._real[name], of(images)) for name, of in self._features.items()}
