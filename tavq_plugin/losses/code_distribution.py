"""The distribution of a level's codes, as points to transport: all codes, Gaussian samples, or a subsample."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.ot.solve import Transport, solve

KINDS = ("all", "gaussian", "gaussian-full", "moments", "moments-full", "subsample")


class GaussianCodes(nn.Module):
    """Reparameterised samples of one Gaussian per image; b n c -> b s c.

    The paper's probabilistic modelling of codes, as we read it: samples μ + L·ε pass the gradient on to the codes.

    Args:
        width: The code width, c.
        samples: Samples per image, s.
        covariance: "diagonal", L = diag(σ), or "full", L Lᵀ = Σ.
        learned: If true, a residual head predicts the Gaussian's mean and log-variance from those of the codes over the
            grid; it starts at 0, where these are the codes' own moments. If false, they always are.
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
        """Mean and factor of each image's Gaussian; b n c -> b c, and σ b c ("diagonal") or L b c c ("full")."""
        variance, mean = torch.var_mean(codes, dim=1, correction=0)
        log_variance = (variance + 1e-8).log()
        shift = torch.zeros_like(log_variance)
        if self.head is not None:
            moments = torch.cat([mean, log_variance], 1).to(self.head.weight.dtype)
            delta, shift = self.head(moments).to(mean.dtype).chunk(2, 1)
            mean = mean + delta
        if self.covariance == "diagonal":
            return mean, (0.5 * (log_variance + shift).clamp(-20, 20)).exp()
        central = codes - codes.mean(1, keepdim=True)
        covariance = central.mT @ central / codes.shape[1]
        jitter = 1e-5 * variance.mean(1) + 1e-8  # codes may span few dimensions; the factor must exist
        covariance = covariance + jitter[:, None, None] * torch.eye(codes.shape[2]).to(covariance)
        return mean, (0.5 * shift.clamp(-20, 20)).exp()[..., None] * torch.linalg.cholesky(covariance)

    def forward(self, codes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Codes to samples; b n c -> b s c."""
        if not len(codes):  # an empty batch has no moments
            return codes[:, :1].expand(-1, self.samples, -1)
        mean, factor = self.moments(codes)
        shape = (len(codes), self.samples, codes.shape[2])
        noise = torch.randn(shape, generator=generator, device=codes.device, dtype=codes.dtype)
        return mean[:, None] + (factor[:, None] * noise if self.covariance == "diagonal" else noise @ factor.mT)


def coarse(
    x: Tensor, y: Tensor, *, grid: tuple[int, int], samples: int = 256, passes: int = 1, **options: Any
) -> Transport:
    """`solve` on a stratified sample of the codes, then a few passes over all codes; b (h w) d, b m d -> Transport.

    A few passes bring the gradient close to that of all codes; `marginal_error` measures how close.

    Args:
        x: Codes on a grid, in raster order.
        y: Text units.
        grid: Height and width, h w.
        samples: Codes in the sample.
        passes: Passes over all codes.
        **options: Other arguments of `solve`, except a mask and weights of the codes.
    """
    sample = stratified(rearrange(x.detach(), "b (h w) d -> b d h w", h=grid[0], w=grid[1]), samples)
    dual = solve(sample, y.detach(), **options)
    return solve(x, y, **options | {"warm_start": dual.potentials, "schedule": "adaptive", "max_passes": passes})


def stratified(codes: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """One random code from each of `samples` equal cells of the grid, the same cells in every image; b c h w -> b s c.

    The grid is divided into r × q cells, r·q = samples, as square as the divisors allow. If there are no more codes
    than samples, all codes are returned. Raises ValueError if no such division fits the grid.
    """
    _, _, h, w = codes.shape
    flat = rearrange(codes, "b c h w -> b (h w) c")
    if samples >= h * w:
        return flat
    rows, columns = _cell_counts(samples, h, w)
    draw = torch.rand(len(codes), samples, 2, generator=generator, device=codes.device, dtype=torch.float64)
    cell = torch.arange(samples, device=codes.device)
    top, left = cell // columns * h // rows, cell % columns * w // columns
    bottom, right = (cell // columns + 1) * h // rows, (cell % columns + 1) * w // columns
    y = top + (draw[..., 0] * (bottom - top)).long()
    x = left + (draw[..., 1] * (right - left)).long()
    return flat.take_along_dim((y * w + x)[..., None], 1)


def _cell_counts(samples: int, h: int, w: int) -> tuple[int, int]:
    """How many rows and columns of cells divide the grid into `samples` cells, as square as possible."""
    counts = [(r, samples // r) for r in range(1, samples + 1) if samples % r == 0]
    counts = [(r, q) for r, q in counts if r <= h and q <= w]
    if not counts:
        raise ValueError(
            f"{samples} samples do not divide a {h} × {w} grid into cells: give r·q with r ≤ {h} and q ≤ {w}"
        )
    return min(counts, key=lambda count: abs(math.log(h / count[0]) - math.log(w / count[1])))


def refuse_masked_places(indices: Tensor, kind: str) -> None:
    """Raise ValueError if a place is masked (index −1) and the distribution draws from every place; b h w."""
    if (indices < 0).any():
        raise ValueError(
            f"indices hold a masked place (−1), and distribution={kind!r} draws from every place: give "
            'distribution="all", where a masked place has no mass'
        )


class CodeDistribution(nn.Module):
    """The distribution of a level's codes, as points; b c h w -> b n c.

    Args:
        kind: "all": every code. "subsample": a stratified sample. "gaussian", "gaussian-full": samples of a Gaussian
            with a learned head, of diagonal or full covariance. "moments", "moments-full": the same without a head.
        width: The code width, c.
        samples: How many points, except for "all".

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
