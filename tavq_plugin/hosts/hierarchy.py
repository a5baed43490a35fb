"""Encoder features to multi-level codes (TA-VQ's multi-hierarchical encoder: Z_f1, Z_f2, Z_f3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.hosts.quantization import QuantizationLoss, nearest, pool, with_gradient
from tavq_plugin.types import Codes, GradTo, Level, Quantized


class Hierarchy(nn.Module):
    """Levels 1..L-1: project to the code width, look a codebook up; level L is the host's own, as it is.

    widths: channels of the tapped features, fine → coarse. codebook: "shared" (the host's, looked up
    read-only or with gradient as `grad_to` says) or "own" (an embedding a level, `codebook_size` × width).
    Level loss: β‖z − sg(e)‖² + ‖sg(z) − e‖² (VQ-VAE, eq. 3); the second term is dropped where the
    codebook is the host's and `grad_to="encoder"`, which never touches it. max_grid: places a side, above which a
    tapped feature is pooled before anything else. detach_added_levels: the added levels read the host and its codebook
    without gradient, so that they learn and it does not feel them.
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
        if codebook == "own" and not codebook_size:
            raise ValueError('codebook="own" needs codebook_size=, the number of codes of each added level')
        self.codebook, self.beta, self.max_grid = codebook, beta, max_grid
        self.straight_through, self.detach_added_levels = straight_through, detach_added_levels
        self.grad_to = grad_to
        self.project = nn.ModuleList(nn.Conv2d(width, code_width, 1) for width in widths)
        self.own = nn.ModuleList()
        if codebook == "own":
            self.own.extend(nn.Embedding(codebook_size, code_width) for _ in widths)
            for table in self.own:
                nn.init.uniform_(table.weight, -1 / codebook_size, 1 / codebook_size)

    @property
    def grad_to(self) -> GradTo:
        """Where a loss on the codes sends its gradient; ValueError for what is unknown or impossible."""
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

    def forward(self, features: Sequence[Tensor], z_in: Tensor, final: Quantized, codebook: Tensor | None) -> Codes:
        """Tapped features and the host's quantizer call to codes of every level; L-1 × b c h w -> Codes."""
        if codebook is None and (self.codebook == "shared" or self.grad_to != "encoder"):
            raise ValueError(
                'this host shows no explicit codebook (k c): wrap it with codebook="own", codebook_size=..., '
                'grad_to="encoder"'
            )
        shared = codebook.detach() if self.detach_added_levels and codebook is not None else codebook
        levels = [self._added(i, f.detach() if self.detach_added_levels else f, shared) for i, f in enumerate(features)]
        own = self._final(z_in if final.latent is None else final.latent, final, codebook)
        return Codes((*levels, own), final.loss)

    def _added(self, index: int, feature: Tensor, shared: Tensor | None) -> Level:
        with torch.autocast(feature.device.type, enabled=False):
            project = self.project[index]
            feature = feature.to(project.weight.dtype)
            side = max(feature.shape[-2:])
            if side > self.max_grid:
                feature = pool(feature, -(-side // self.max_grid))
            latent = project(feature)
            table = self.own[index].weight if self.codebook == "own" else shared
            indices = nearest(latent, table)
            vectors = rearrange(F.embedding(indices, table.to(latent.dtype)), "b h w c -> b c h w")
            if self.codebook == "own" or self.grad_to != "encoder":
                loss = QuantizationLoss.apply(latent, vectors, self.beta)
            else:
                loss = self.beta * F.mse_loss(latent, vectors.detach())
            return Level(latent, with_gradient(latent, vectors, self.grad_to), indices, loss)

    def _final(self, z_in: Tensor, final: Quantized, codebook: Tensor | None) -> Level:
        quantized = final.vectors
        if self.grad_to == "codebook" or (self.grad_to == "both" and self.straight_through):
            vectors = final.looked_up
            if vectors is None:
                vectors = rearrange(F.embedding(final.indices, codebook), "b h w c -> b c h w")
            quantized = with_gradient(z_in.to(vectors.dtype), vectors, self.grad_to)
        return Level(z_in, quantized, final.indices, final.vectors.new_zeros(()))
