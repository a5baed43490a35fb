"""The networks that judge reconstructions, each where its weights are; what is not there is named, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tavq_plugin.evaluation.metrics.frechet import Inception, frechet, kernel
from tavq_plugin.networks.frozen import Judge, mobilenet, squeezenet
from tavq_plugin.networks.lpips import Lpips

FROZEN = {"mobilenet": mobilenet, "squeezenet": squeezenet}
OF = {
    "inception": ("rfid", "kid"),
    "lpips": ("lpips",),
    "mobilenet": ("fd_mobilenet", "kd_mobilenet", "agreement_mobilenet"),
    "squeezenet": ("fd_squeezenet", "kd_squeezenet", "agreement_squeezenet"),
}
"""The metrics of each network."""


class Judges:
    """The networks of a folder of weights, and what they make of the same held-out images, worked out once.

    Raises ValueError where a file of weights is there and has another hash.
    """

    def __init__(self, folder: Path | None, images: Tensor, *, names: tuple[str, ...] = tuple(OF)) -> None:
        self.images = images  # n 3 h w uint8
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.absent: dict[str, str] = {}  # metric → why it is not computed
        self._nets: dict[str, Any] = {}
        for name, metrics in OF.items():
            if name not in names:
                self.absent |= dict.fromkeys(metrics, f"{name} was left out of this protocol")
                continue
            try:
                self._nets[name] = self._build(name, folder).to(self.device)
            except (FileNotFoundError, ImportError) as error:
                self.absent |= dict.fromkeys(metrics, str(error))
        self._reference = {name: self._look(net, images) for name, net in self._nets.items() if name != "lpips"}

    @staticmethod
    def _build(name: str, folder: Path | None) -> Any:
        if name == "inception":
            return Inception(folder)
        return Lpips(folder) if name == "lpips" else FROZEN[name](folder)

    @torch.no_grad()
    def judge(self, reconstruction: Tensor) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Distances of the whole set, and what can be said of each image; n 3 h w uint8 -> by metric."""
        values: dict[str, float] = {}
        each: dict[str, Tensor] = {}
        for name, net in self._nets.items():
            if name == "lpips":
                pairs = zip(reconstruction.split(25), self.images.split(25), strict=True)
                pairs = ([side.to(self.device).float() / 127.5 - 1 for side in pair] for pair in pairs)
                with _in_full_float32():
                    each["lpips"] = torch.cat([net(*pair).cpu() for pair in pairs])
                continue
            seen, real = self._look(net, reconstruction), self._reference[name]
            distance, spread, *agreement = OF[name]
            values[distance] = frechet(real["features"], seen["features"])
            if len(real["features"]) >= 4:
                values[spread] = kernel(real["features"], seen["features"])
            for metric in agreement:
                each[metric] = 100 * (real["classes"] == seen["classes"]).float()
        return values, each

    @torch.no_grad()
    def _look(self, net: torch.nn.Module, images: Tensor) -> dict[str, Tensor]:
        parts = []
        with _in_full_float32():
            for part in images.split(500):
                seen = net(part.to(self.device))
                parts.append(seen._asdict() if isinstance(net, Judge) else {"features": seen})
        return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


@contextmanager
def _in_full_float32() -> Iterator[None]:
    """Convolutions on a GPU in float32 throughout: a distance is the same wherever it is measured."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
