"""What an alignment tells of its latest call: each figure is computed when it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tavq_plugin.ot.solve import Transport

OF_TRANSPORT = ("transport_cost", "gain", "plan_entropy", "marginal_error", "converged")


class Diagnostics(Mapping[str, Tensor]):
    """Figures by name, a number a level, without gradient; what they are made of is held until the next call.

    units and images_without_text are counts; contrast is the contrast over the batch, where there is one; the others
    are means over the images with text of what `Transport` calls so. masses: of each level's units, l b m.
    """

    def __init__(self, masses: Tensor | None = None) -> None:
        self._masses = masses
        self._made: dict[str, Tensor] = {}
        self._result: Transport | None = None
        self._scale, self._shift = 1.0, 0.0

    def transported(self, result: Transport, scale: float, shift: Tensor | float) -> None:
        """From now on it tells of this transport, over (l b), whose cost is scale · (its own) + shift."""
        self._result = replace(result, value=result.value.detach())
        self._scale, self._shift = scale, shift

    def add(self, name: str, value: Tensor) -> None:
        """A figure that is made already."""
        self._made[name] = value.detach()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            if name not in self._names():
                raise KeyError(f"no {name!r}: one of {', '.join(self) or 'none, as there was no call yet'}")
            with torch.no_grad():
                self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> list[str]:
        counted = ("units", "images_without_text") if self._masses is not None else ()
        of_transport = OF_TRANSPORT if self._result is not None else ()
        return list(dict.fromkeys((*counted, *of_transport, *self._made)))

    def _make(self, name: str) -> Tensor:
        if name == "units":
            return (self._masses != 0).sum((1, 2))
        present = (self._masses != 0).any(2)
        if name == "images_without_text":
            return (~present).sum(1)
        value = getattr(self._result, name)
        if name in ("transport_cost", "gain"):
            value = self._scale * value + (self._shift if name == "transport_cost" else 0.0)
        return mean_over_images(value, present)


def mean_over_images(values: Tensor, present: Tensor) -> Tensor:
    """Mean over the images with text, 0 where no image has any; (l b), l b bool -> l."""
    return (values.view_as(present) * present).sum(1) / present.sum(1).clamp(min=1)
