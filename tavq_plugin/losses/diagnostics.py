"""Diagnostics of an alignment's last forward: one value per level, computed lazily."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tavq_plugin.losses.cloud_transport import CloudTransport
from tavq_plugin.losses.effective_rank import effective_rank
from tavq_plugin.losses.gradient_injection import GradientFigures
from tavq_plugin.losses.own_minus_other import own_minus_other
from tavq_plugin.losses.point_clouds import PointClouds
from tavq_plugin.ot.solve import TransportSettings

TRANSPORT_FIGURES = ("transport_cost", "gain", "plan_entropy", "marginal_error", "converged")


class Diagnostics(Mapping[str, Tensor]):
    """Figures by name, one value per level, without gradient, computed when they are read.

    units and images_without_text are counts. contrast is the contrastive loss, if there is one. transport_cost, gain,
    plan_entropy, marginal_error and converged are means, over the images with text, of the attributes of `Transport`
    with the same names. own_minus_other is the transport cost to the own text less that to another image's: negative
    where codes are nearer to their own text (`own_minus_other`). effective_rank is the number of directions that the
    quantized codes use (`effective_rank`).

    `attach` and the trainer's method add alignment, the value of the whole loss, and `attach` codebook_loss, the added
    levels' own, both scalars. With balanced gradients they add, one value per tensor of `gradient_names`:
    gradient_cosine and gradient_ratio (alignment's over host's, before scaling) of the latest backward, NaN until it
    ran; and gradient_skipped, the number of backward passes of the run in which the host's gradient was 0, absent or
    not finite, so that nothing was added.

    Each is computed once, however often it is read; own_minus_other takes about as long as the transport of a forward,
    the others far less. Until the next forward of the alignment, this holds the quantized codes, the points of codes
    and text (the largest, l b n d) and the solver's costs and plans, but no graph. The forward makes all of them
    anyway; without this they would go with the backward. Points and codes go once their figure was read.

    Args:
        masses: Masses of each level's units, l b m. Default: none, before the first forward.
    """

    def __init__(self, masses: Tensor | None = None) -> None:
        self._masses = masses
        self._values: dict[str, Tensor] = {}
        self._points: tuple[PointClouds, PointClouds, TransportSettings] | None = None
        self._codes: list[Tensor] | None = None
        self._later: dict[str, Callable[[], Tensor]] = {}
        self._gradients: GradientFigures | None = None
        self._transport: CloudTransport | None = None
        self._before_reading: list[Callable[[], object]] = []

    def add_transport(self, found: CloudTransport) -> None:
        """Add the figures of a transport over (l b)."""
        self._transport = found._replace(result=replace(found.result, value=found.result.value.detach()))

    def add(self, name: str, value: Tensor) -> None:
        """Add a figure that is already computed, l."""
        self._values[name] = value.detach()

    def add_points(self, codes: PointClouds, text: PointClouds, settings: TransportSettings) -> None:
        """Add own_minus_other of these points; l b n d, l b m d."""
        codes, text = (PointClouds(part.points.detach(), part.masses.detach()) for part in (codes, text))
        self._points = (codes, text, settings)

    def add_codes(self, codes: Sequence[Tensor]) -> None:
        """Add effective_rank of each level's quantized codes, l × b c h w."""
        self._codes = [level.detach() for level in codes]

    def add_gradients(self, figures: GradientFigures) -> None:
        """Add what backward passes find where gradients are balanced; read anew each time."""
        self._gradients = figures
        if figures.names:
            self._later["gradient_cosine"] = partial(figures.values, "cosine")
            self._later["gradient_ratio"] = partial(figures.values, "ratio")
            self._later["gradient_skipped"] = figures.warn_of_skipped

    def before_reading(self, call: Callable[[], object]) -> None:
        """Call this once, when the first figure is read; a check whose answer lies on the device may warn so."""
        self._before_reading.append(call)

    @property
    def gradient_names(self) -> tuple[str, ...]:
        """The tensor that each value of gradient_cosine, gradient_ratio and gradient_skipped belongs to, in order.

        Taps, the quantizer's input and outputs, then parameters, by their paths in the host; empty without a balance.
        """
        return () if self._gradients is None else self._gradients.names

    def __getitem__(self, name: str) -> Tensor:
        while self._before_reading:
            self._before_reading.pop()()
        if name in self._later:
            return self._later[name]()
        if name not in self._values:
            if name not in self._names():
                raise KeyError(f"no {name!r}: give one of {', '.join(self) or 'none, as there was no forward yet'}")
            with torch.no_grad():
                self._values[name] = self._figure(name)
            self._release(name)
        return self._values[name]

    def _release(self, name: str) -> None:
        """Drop what only this figure needed."""
        if name == "own_minus_other":
            self._points = None
        if name == "effective_rank":
            self._codes = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> list[str]:
        counts = ("units", "images_without_text") if self._masses is not None else ()
        transport = TRANSPORT_FIGURES if self._transport is not None else ()
        own = ("own_minus_other",) if self._points is not None else ()
        rank = ("effective_rank",) if self._codes is not None else ()
        return list(dict.fromkeys((*counts, *transport, *own, *rank, *self._values, *self._later)))

    def _figure(self, name: str) -> Tensor:
        if name == "own_minus_other" and self._points is not None:
            return own_minus_other(*self._points, own=None if self._transport is None else self._transport.cost)
        if name == "effective_rank" and self._codes is not None:
            return torch.stack([effective_rank(level) for level in self._codes])
        if self._masses is None:
            raise ValueError(f"{name} needs the units' masses: give Diagnostics(masses)")
        has_mass = self._masses.ne(0)
        if name == "units":
            return has_mass.sum((1, 2))
        has_text = has_mass.any(2)
        if name == "images_without_text":
            return (~has_text).sum(1)
        assert self._transport is not None  # its figures are the names that are left
        if name == "transport_cost":
            return mean_over_images(self._transport.cost, has_text)
        value = getattr(self._transport.result, name)
        return mean_over_images(self._transport.scale * value if name == "gain" else value, has_text)


def mean_over_images(values: Tensor, has_text: Tensor) -> Tensor:
    """Mean over the images with text, 0 if no image has text; (l b), l b bool -> l."""
    return (values.view_as(has_text) * has_text).sum(1) / has_text.sum(1).clamp(min=1)
