"""Codes of a level as a measure to transport from: every code, Gaussian samples, or a stratified subsample."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.ot.solve import Transport, solve

KINDS = ("all", "gaussian", "gaussian-full", "moments", "moments-full", "subsample")


class GaussianCodes(nn.Module):
    """Samples of a Gaussian an image, reparameterised; b n c -> b s c.

    The paper's probabilistic modelling of codes, as we read it: S samples of a density are drawn, μ + L·ε, so that
    gradient reaches the codes. covariance: "diagonal", L = diag(σ), or "full", L Lᵀ = Σ. learned: the codes' mean and
    log-variance over the grid go through a head that predicts the density's; it is residual and starts at 0, so at
    first, and always where it is not learned, the moments are the codes' own.
    """

    def __init__(self, width: int, samples: int, *, covariance: str = "diagonal", learned: bool = True) -> None:
        super().__init__()
        if covariance not in ("diagonal", "full"):
            raise ValueError(f'covariance={covariance!r}: give "diagonal" or "full"')
        self.samples, self.covariance = samples, covariance
        self.head = nn.Linear(2 * width, 2 * width) if learned else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def moments(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and factor of each image's density; b n c -> b c, and σ b c ("diagonal") or L b c c ("full")."""
        variance, mean = torch.var_mean(codes, dim=1, correction=0)
        log_variance = (variance + 1e-8).log()
        shift = torch.zeros_like(log_variance)
        if self.head is not None:
            delta, shift = self.head(torch.cat([mean, log_variance], 1)).chunk(2, 1)
            mean = mean + delta
        if self.covariance == "diagonal":
            return mean, (0.5 * (log_variance + shift).clamp(-20, 20)).exp()
        central = codes - codes.mean(1, keepdim=True)
        covariance = central.mT @ central / codes.shape[1]
        jitter = 1e-5 * variance.mean(1) + 1e-8  # codes span few dimensions: keeps the factor defined
        covariance = covariance + jitter[:, None, None] * torch.eye(codes.shape[2]).to(covariance)
        return mean, (0.5 * shift.clamp(-20, 20)).exp()[..., None] * torch.linalg.cholesky(covariance)

    def forward(self, codes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Codes to samples; b n c -> b s c."""
        mean, factor = self.moments(codes)
        shape = (len(codes), self.samples, codes.shape[2])
        noise = torch.randn(shape, generator=generator, device=codes.device, dtype=codes.dtype)
        return mean[:, None] + (factor[:, None] * noise if self.covariance == "diagonal" else noise @ factor.mT)


def coarse(
    x: Tensor, y: Tensor, *, grid: tuple[int, int], samples: int = 256, passes: int = 1, **options: Any
) -> Transport:
    """`solve` by a sample: a dual found on a stratified sample of the codes, then `passes` over all; b (h w) d, b m d.

    Nearly the gradient of all codes for the price of a few passes; `marginal_error` tells what is missing. `options`
    are those of `solve`; a mask or weights of the codes are not among them.
    """
    sample = stratified(rearrange(x.detach(), "b (h w) d -> b d h w", h=grid[0], w=grid[1]), samples)
    dual = solve(sample, y.detach(), **options)
    return solve(x, y, **options | {"warm_start": dual.potentials, "schedule": "adaptive", "max_passes": passes})


def stratified(codes: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """One random code from each of `samples` equal cells of the grid, the same cells in every image; b c h w -> b s c.

    The grid is cut into r × q cells, r·q = samples, as square as the divisors allow. Where the samples reach the
    number of codes, all codes come back. Raises ValueError where no such cut fits the grid.
    """
    _, _, h, w = codes.shape
    flat = rearrange(codes, "b c h w -> b (h w) c")
    if samples >= h * w:
        return flat
    rows, columns = _cells(samples, h, w)
    draw = torch.rand(len(codes), samples, 2, generator=generator, device=codes.device, dtype=torch.float64)
    cell = torch.arange(samples, device=codes.device)
    top, left = cell // columns * h // rows, cell % columns * w // columns
    bottom, right = (cell // columns + 1) * h // rows, (cell % columns + 1) * w // columns
    y = top + (draw[..., 0] * (bottom - top)).long()
    x = left + (draw[..., 1] * (right - left)).long()
    return flat.take_along_dim((y * w + x)[..., None], 1)


def _cells(samples: int, h: int, w: int) -> tuple[int, int]:
    cuts = [(r, samples // r) for r in range(1, samples + 1) if samples % r == 0]
    cuts = [(r, q) for r, q in cuts if r <= h and q <= w]
    if not cuts:
        raise ValueError(
            f"{samples} samples do not cut a {h} × {w} grid into cells: give a product of two smaller sides"
        )
    return min(cuts, key=lambda cut: abs(math.log(h / cut[0]) - math.log(w / cut[1])))


class CodeDistribution(nn.Module):
    """The measure of a level's codes, as points; b c h w -> b n c.

    "all": each code; "subsample": a stratified one of `samples`; samples of a Gaussian with a learned head,
    "gaussian" (diagonal) or "gaussian-full", or without, "moments" or "moments-full".

    >>> CodeDistribution("subsample", width=3, samples=4)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 4, 3])
    """

    def __init__(self, kind: str, width: int, samples: int = 128) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"distribution={kind!r}: give one of {', '.join(map(repr, KINDS))}")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.kind, self.samples = kind, samples
        self.gaussian = None
        if kind not in ("all", "subsample"):
            name, _, full = kind.partition("-")
            self.gaussian = GaussianCodes(width, samples, covariance=full or "diagonal", learned=name == "gaussian")

    def forward(self, codes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Codes on their grid to points; b c h w -> b n c, n = h·w or samples."""
        if self.kind == "subsample":
            return stratified(codes, self.samples, generator)
        flat = rearrange(codes, "b c h w -> b (h w) c")
        return flat if self.gaussian is None else self.gaussian(flat, generator)
