"""Encoder features to codes of several levels (TA-VQ's multi-hierarchical encoder: Z_f1, Z_f2, Z_f3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.hosts.quantization import QuantizationLoss, nearest, pool, with_gradient
from tavq_plugin.types import Codes, GradTo, Level, Quantized


class Hierarchy(nn.Module):
    """The added levels 1..L-1: project features to the code width, look up a codebook. Level L is the host's own.

    The loss of an added level is β‖z − sg(e)‖² + ‖sg(z) − e‖² (VQ-VAE, eq. 3). With the host's codebook and
    `grad_to="encoder"` the second term is left out, as it would move that codebook.

    Args:
        widths: Channels of the tapped features, fine to coarse.
        code_width: Width of the host's codes.
        codebook: "shared", the host's, or "own", one embedding of `codebook_size` × `code_width` per added level.
        codebook_size: Number of codes of each own codebook. "own" requires it.
        grad_to: Where a loss on the codes sends its gradient: "encoder", "codebook" or "both".
        straight_through: True if the host's quantizer passes its gradient to the latent alone; false for Gumbel.
        beta: Weight β of the commitment term.
        max_grid: A tapped feature with more places per side than this is pooled first.
        detach_added_levels: If true, the added levels send no gradient to the host or its codebook.

    Raises:
        ValueError: `codebook` or `grad_to` is unknown, or "own" comes without `codebook_size`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        code_width: int,
        *,
        codebook: str = "shared",
        codebook_size: int | None = None,
        grad_to: GradTo = "both",
        straight_through: bool = True,
        beta: float = 0.25,
        max_grid: int = 64,
        detach_added_levels: bool = False,
    ) -> None:
        super().__init__()
        if codebook not in ("shared", "own"):
            raise ValueError(f'codebook={codebook!r}: give "shared" (the host\'s) or "own"')
        self.codebook, self.beta, self.max_grid = codebook, beta, max_grid
        self.straight_through, self.detach_added_levels = straight_through, detach_added_levels
        self.grad_to = grad_to
        self.project = nn.ModuleList(nn.Conv2d(width, code_width, 1) for width in widths)
        self.own = nn.ModuleList()
        if codebook == "own":
            if not codebook_size:
                raise ValueError('codebook="own" needs codebook_size=, the number of codes of each added level')
            tables = [nn.Embedding(codebook_size, code_width) for _ in widths]
            for table in tables:
                nn.init.uniform_(table.weight, -1 / codebook_size, 1 / codebook_size)
            self.own.extend(tables)

    @property
    def grad_to(self) -> GradTo:
        """Where a loss on the codes sends its gradient. Setting it raises ValueError if unknown or impossible."""
        return self._grad_to

    @grad_to.setter
    def grad_to(self, grad_to: GradTo) -> None:
        if grad_to not in get_args(GradTo):
            raise ValueError(f'grad_to={grad_to!r}: give "encoder", "codebook" or "both"')
        if grad_to == "encoder" and not self.straight_through:
            raise ValueError(
                'grad_to="encoder" is impossible on this host: its quantizer passes gradient to its codebook by '
                'itself (Gumbel); give "both" or "codebook"'
            )
        self._grad_to: GradTo = grad_to

    def forward(
        self,
        features: Sequence[Tensor],
        z_in: Tensor,
        final: Quantized,
        codebook: Tensor | None,
        *,
        loss_moves_host: bool = True,
    ) -> Codes:
        """Codes of every level, from the tapped features and the host's quantizer call; L-1 × b c h w -> Codes.

        If `loss_moves_host` is false, the added levels' own loss does not move the host's codebook.
        """
        looks_up = self.codebook == "shared" or (self.grad_to != "encoder" and final.looked_up is None)
        if codebook is None and looks_up:
            raise ValueError(
                "this host has no explicit codebook (k c): give codebook=, its path or a function of the host; or "
                'codebook="own", codebook_size=..., grad_to="encoder"'
            )
        if self.detach_added_levels:
            features = [feature.detach() for feature in features]
        added = [
            self._added_level(index, feature, codebook, loss_moves_host=loss_moves_host)
            for index, feature in enumerate(features)
        ]
        host_level = self._host_level(z_in if final.latent is None else final.latent, final, codebook)
        return Codes((*added, host_level), final.loss)

    def _table(self, index: int, codebook: Tensor | None) -> Tensor:
        """The codebook of an added level, k c: its own, or the host's."""
        if self.codebook == "own":
            own: Any = self.own[index]
            return own.weight
        assert codebook is not None  # `forward` refuses it
        return codebook.detach() if self.detach_added_levels else codebook

    def _added_level(self, index: int, feature: Tensor, codebook: Tensor | None, *, loss_moves_host: bool) -> Level:
        with torch.autocast(feature.device.type, enabled=False):
            project: Any = self.project[index]
            feature = feature.to(project.weight.dtype)
            side = max(feature.shape[-2:])
            if side > self.max_grid:
                feature = pool(feature, -(-side // self.max_grid))
            latent = project(feature)
            table = self._table(index, codebook)
            indices = nearest(latent, table)
            vectors = _look_up(indices, table.to(latent.dtype))
            if self.codebook == "own" or self.grad_to != "encoder":
                moved = self.codebook == "own" or loss_moves_host
                loss = QuantizationLoss.apply(latent, vectors if moved else vectors.detach(), self.beta)
            else:
                loss = self.beta * F.mse_loss(latent, vectors.detach())
            return Level(latent, with_gradient(latent, vectors, self.grad_to), indices, loss)

    def _host_level(self, z_in: Tensor, final: Quantized, codebook: Tensor | None) -> Level:
        quantized = final.vectors
        if self.grad_to == "codebook" or (self.grad_to == "both" and self.straight_through):
            vectors = final.looked_up
            if vectors is None:
                assert codebook is not None  # `forward` refuses it
                vectors = _look_up(final.indices, codebook)
            quantized = with_gradient(z_in.to(vectors.dtype), vectors, self.grad_to)
        return Level(z_in, quantized, final.indices, final.vectors.new_zeros(()))


def _look_up(indices: Tensor, table: Tensor) -> Tensor:
    """The codes at the indices; b h w, k c -> b c h w."""
    return rearrange(F.embedding(indices, table), "b h w c -> b c h w")
