"""The protocols of a host's adapter and of a quantizer's adapter."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from tavq_plugin.types import Quantized


class QuantizerAdapter(Protocol):
    """Reads one quantizer class; made anew around the live module at each step.

    `wrap` checks it against a run of the host. Two attributes, which an adapter may leave out, say what the check would
    else refuse: `sums_lookups = True`, the vectors are sums of several codes (residual stages, scales), no rows of
    `codebook()`; `moves_codebook = True`, a training forward changes codes that learn by gradient after the lookup.
    Where vectors are sums, the methods `read_tokens` and `vectors_of` (see `tavq_plugin.hosts.token_vectors`) turn them
    into tokens and back.
    """

    straight_through: bool  #: False if the quantizer passes gradient to its codebook by itself (Gumbel)

    def parse(self, z_in: Any, output: Any) -> Quantized:
        """The quantizer's input and raw output as `Quantized`."""

    def codebook(self) -> Tensor | None:
        """The live codebook in the width the decoder reads, k c; None if there is no explicit one."""


@runtime_checkable
class Adapter(Protocol):
    """Describes one host codebase to the plug-in; one file per codebase in `adapters/`."""

    model: nn.Module
    taps: tuple[str, ...]  #: module paths, fine to coarse
    quantizer: str  #: module path, resolved at each step

    @property
    def straight_through(self) -> bool:
        """True if the quantizer passes its gradient to the latent alone; False for Gumbel."""

    def tokens(self, feature: Tensor, level: int) -> Tensor:
        """A tapped module's output as a map; anything -> b c h w."""

    def parse(self, z_in: Tensor, output: Any) -> Quantized:
        """The quantizer's input and raw output as `Quantized`."""

    def encode(self, images: Tensor) -> None:
        """Run the host up to and through its quantizer; hooks record what is needed."""

    def example_images(self) -> Tensor:
        """Noise of a size that shows every level's grid, the user's or the smallest; on the host's device, b c h w."""

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""

    def codebook(self) -> Tensor | None:
        """The live codebook, k c; None where the host has no explicit one."""

    def last_layer(self) -> Tensor | None:
        """Weight of the decoder's last layer, for adaptive loss weights; None if it is unknown."""
