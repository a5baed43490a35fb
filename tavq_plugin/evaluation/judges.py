"""The frozen networks that judge reconstructions. A metric whose weights are missing is reported with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tavq_plugin.evaluation.metrics.frechet import Inception, frechet_distance, kernel_distance
from tavq_plugin.evaluation.results import RunResults
from tavq_plugin.networks.frozen import Judge, mobilenet, squeezenet
from tavq_plugin.networks.lpips import Lpips
from tavq_plugin.pixels import to_float

NETWORKS: dict[str, Any] = {"inception": Inception, "lpips": Lpips, "mobilenet": mobilenet, "squeezenet": squeezenet}
METRICS_BY_JUDGE = {
    "inception": ("rfid", "kid", "kid_spread"),
    "lpips": ("lpips",),
    "mobilenet": ("fd_mobilenet", "kd_mobilenet", "kd_mobilenet_spread", "agreement_mobilenet"),
    "squeezenet": ("fd_squeezenet", "kd_squeezenet", "kd_squeezenet_spread", "agreement_squeezenet"),
}
"""Which metrics need which network."""


class Judges:
    """The judging networks, and their features of the held-out images, computed once for all runs.

    folder: folder with the networks' weights; None if there is none. images: the held-out images, n 3 h w uint8.
    names: the networks that take part. Raises ValueError for a file of weights with an unknown hash.
    """

    def __init__(
        self, folder: Path | None, images: Tensor, *, names: tuple[str, ...] = tuple(METRICS_BY_JUDGE)
    ) -> None:
        self.images = images
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.missing: dict[str, str] = {}  # metric → why it is not computed
        self._nets: dict[str, Any] = {}
        for name, metrics in METRICS_BY_JUDGE.items():
            if name not in names:
                self.missing |= dict.fromkeys(metrics, f"{name} was left out of this protocol")
                continue
            try:
                self._nets[name] = NETWORKS[name](folder).to(self.device)
            except (FileNotFoundError, ImportError) as error:
                self.missing |= dict.fromkeys(metrics, str(error))
        self._reference = {name: self._features(net, images) for name, net in self._nets.items() if name != "lpips"}

    @torch.no_grad()
    def judge(self, reconstruction: Tensor) -> RunResults:
        """Compare the held-out images with their reconstructions, as sets and one by one; n 3 h w uint8."""
        values: dict[str, float] = {}
        per_image: dict[str, Tensor] = {}
        missing = dict(self.missing)
        for name, net in self._nets.items():
            if name == "lpips":
                batches = zip(reconstruction.split(25), self.images.split(25), strict=True)
                pairs = ([to_float(side.to(self.device)) for side in batch] for batch in batches)
                with _in_full_float32():
                    per_image["lpips"] = torch.cat([net(*pair).cpu() for pair in pairs])
                continue
            seen, real = self._features(net, reconstruction), self._reference[name]
            distance, kernel, spread, *agreement = METRICS_BY_JUDGE[name]
            values[distance] = frechet_distance(real["features"], seen["features"])
            try:
                values[kernel], values[spread] = kernel_distance(real["features"], seen["features"])
            except ValueError as error:  # fewer than four images
                missing |= dict.fromkeys((kernel, spread), str(error))
            for metric in agreement:
                per_image[metric] = 100 * (real["classes"] == seen["classes"]).float()
        return RunResults(values, per_image, missing)

    @torch.no_grad()
    def _features(self, net: torch.nn.Module, images: Tensor) -> dict[str, Tensor]:
        parts = []
        with _in_full_float32():
            for part in images.split(500):
                seen = net(part.to(self.device))
                parts.append(seen._asdict() if isinstance(net, Judge) else {"features": seen})
        return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


@contextmanager
def _in_full_float32() -> Iterator[None]:
    """Convolutions on a GPU use full float32, so that a distance is the same on every machine."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
