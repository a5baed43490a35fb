"""Diagnostics of an alignment's last forward: one value per level, computed lazily."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tavq_plugin.ot.solve import Transport

TRANSPORT_FIGURES = ("transport_cost", "gain", "plan_entropy", "marginal_error", "converged")


class Diagnostics(Mapping[str, Tensor]):
    """Figures by name, one value per level, without gradient; their inputs are held until the next forward.

    units and images_without_text are counts. contrast is the contrastive loss, if there is one. The others are means,
    over the images with text, of the attributes of `Transport` with the same names.

    `attach` and the trainer's method add alignment, the value of the whole loss, and `attach` codebook_loss, the added
    levels' own, both scalars. With balanced gradients they add, one value per tap, latent and codebook, and known after
    the backward: gradient_cosine and gradient_ratio (alignment's over host's, before scaling), and gradient_skipped,
    the number of backward passes in which the host's gradient was 0, absent or not finite, so that nothing was added.

    Args:
        masses: Masses of each level's units, l b m. Default: none, before the first forward.
    """

    def __init__(self, masses: Tensor | None = None) -> None:
        self._masses = masses
        self._values: dict[str, Tensor] = {}
        self._later: dict[str, Callable[[], Tensor]] = {}
        self._result: Transport | None = None
        self._scale: float = 1.0
        self._shift: Tensor | float = 0.0

    def add_transport(self, result: Transport, scale: float, shift: Tensor | float) -> None:
        """Add the figures of a result over (l b); the cost is scale · (the result's) + shift."""
        self._result = replace(result, value=result.value.detach())
        self._scale, self._shift = scale, shift

    def add(self, name: str, value: Tensor) -> None:
        """Add a figure that is already computed, l."""
        self._values[name] = value.detach()

    def add_later(self, name: str, value: Callable[[], Tensor]) -> None:
        """Add a figure that changes, and is computed each time it is read."""
        self._later[name] = value

    def __getitem__(self, name: str) -> Tensor:
        if name in self._later:
            return self._later[name]()
        if name not in self._values:
            if name not in self._names():
                raise KeyError(f"no {name!r}: give one of {', '.join(self) or 'none, as there was no forward yet'}")
            with torch.no_grad():
                self._values[name] = self._figure(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> list[str]:
        counts = ("units", "images_without_text") if self._masses is not None else ()
        transport = TRANSPORT_FIGURES if self._result is not None else ()
        return list(dict.fromkeys((*counts, *transport, *self._values, *self._later)))

    def _figure(self, name: str) -> Tensor:
        if self._masses is None:
            raise ValueError(f"{name} needs the units' masses: give Diagnostics(masses)")
        has_mass = self._masses.ne(0)
        if name == "units":
            return has_mass.sum((1, 2))
        has_text = has_mass.any(2)
        if name == "images_without_text":
            return (~has_text).sum(1)
        value = getattr(self._result, name)
        if name in ("transport_cost", "gain"):
            value = self._scale * value + (self._shift if name == "transport_cost" else 0.0)
        return mean_over_images(value, has_text)


def mean_over_images(values: Tensor, has_text: Tensor) -> Tensor:
    """Mean over the images with text, 0 if no image has text; (l b), l b bool -> l."""
    return (values.view_as(has_text) * has_text).sum(1) / has_text.sum(1).clamp(min=1)
