"""The types that all parts share, with shapes in einops letters.

b batch, c code width, h w grid, n codes of a level (h·w), m text units, d text width, k codebook size.
Levels run fine → coarse; the last is always the host's own quantizer output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

GRANULARITIES = ("word", "phrase", "sentence")
GradTo = Literal["encoder", "codebook", "both"]


class Quantized(NamedTuple):
    """What a host's quantizer call means, whatever it returned."""

    vectors: Tensor  #: b c h w, as the host's decoder receives them
    indices: Tensor  #: b h w, int64
    loss: Tensor  #: scalar, as the host defines it
    latent: Tensor | None = None  #: b c h w, what was quantized; None if it is the quantizer's input
    looked_up: Tensor | None = None  #: b c h w, with gradient to the codebook; None if it is codebook[indices]


@dataclass(frozen=True)
class Level:
    """One depth of the encoder, quantized."""

    latent: Tensor  #: b c h w, before quantization
    quantized: Tensor  #: b c h w, value = the codebook at `indices`, gradient as `grad_to` says
    indices: Tensor  #: b h w, int64
    loss: Tensor  #: scalar: this level's commitment + codebook loss; 0 for the host's own level


class DetachedCopy(NamedTuple):
    """A tensor of the host, and the leaf that stands for it where codes are computed apart from the host's graph."""

    name: str  # path of the module or parameter
    original: Tensor  # in the host's graph
    copy: Tensor  # detached, with the same values; a parameter stands for itself
    images: int | None  # axis of the images; None: a parameter, or no axis is known
    level: int = -1  # of a tap, fine → coarse; -1, the host's own: the latent, the quantizer's output, a parameter


@dataclass(frozen=True)
class Codes:
    """The levels of a batch, fine → coarse; the last is the host's own.

    With `copies`, the levels were computed on them, and a loss on the levels sends the host no gradient by itself.
    """

    levels: tuple[Level, ...]
    quantizer_loss: Tensor | None = None  #: scalar, the host quantizer's own; the host's output holds it too
    copies: tuple[DetachedCopy, ...] = ()  #: fine → coarse, then the host's parameters that codes may depend on

    @property
    def final(self) -> Level:
        """The host's own level: the one its decoder reads."""
        return self.levels[-1]

    @property
    def loss(self) -> Tensor:
        """Sum of the added levels' losses; the host's own stays in the host's output."""
        return torch.stack([level.loss for level in self.levels[:-1]]).sum()


@dataclass(frozen=True)
class Units:
    """The text units of one granularity, padded; an image without text has an all-False mask row."""

    embeddings: Tensor  #: b m d
    mask: Tensor  #: b m bool, True for a unit, False for padding
    weights: Tensor | None = None  #: b m, mass of each unit; None: uniform over an image's units

    def to(self, device: torch.device | str) -> Units:
        """The same units on another device."""
        weights = None if self.weights is None else self.weights.to(device)
        return Units(self.embeddings.to(device), self.mask.to(device), weights)


TextBatch = Mapping[str, Units]  # granularity → units


@runtime_checkable
class TextSource(Protocol):
    """Gives the units of texts: `TextStore` and `ShardedStore` by id or row, `TextCache` from the text itself."""

    @property
    def dim(self) -> int:
        """Width d of the embeddings."""

    def batch(self, texts: Any, /, device: torch.device | str | None = None) -> TextBatch:
        """Padded units of b texts; a text without units has an all-False mask row."""
