"""Codes of a level as a measure to transport from: every code, Gaussian samples, or a stratified subsample."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

KINDS = ("all", "gaussian", "subsample")


class GaussianCodes(nn.Module):
    """Samples of a diagonal Gaussian with learned mean and variance, an image each; b n c -> b s c.

    The paper's probabilistic modelling of codes, as we read it: the codes' mean and log-variance over the grid go
    through a head that predicts the density's; S samples are drawn by reparameterisation, μ + σ·ε, so gradient
    reaches the codes and the head. The head is residual and starts at 0: at first the moments are the codes' own.
    """

    def __init__(self, width: int, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.head = nn.Linear(2 * width, 2 * width)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def moments(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each image's density; b n c -> b c, b c."""
        variance, mean = torch.var_mean(codes, dim=1, correction=0)
        log_variance = (variance + 1e-8).log()
        statistics = torch.cat([mean, log_variance], 1)
        mean, log_variance = (statistics + self.head(statistics)).chunk(2, 1)
        return mean, (0.5 * log_variance.clamp(-20, 20)).exp()

    def forward(self, codes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Codes to samples; b n c -> b s c."""
        mean, deviation = self.moments(codes)
        shape = (len(codes), self.samples, codes.shape[2])
        noise = torch.randn(shape, generator=generator, device=codes.device, dtype=codes.dtype)
        return mean[:, None] + deviation[:, None] * noise


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


class Collapsed(NamedTuple):
    """The distinct codes of the images, one after another, and their places in a padded batch."""

    distinct: Tensor  # p c
    slot: Tensor  # p, of each in (b u)
    masses: Tensor  # b u, the share of the image's places with that code, 0 where padded

    def pad(self, points: Tensor) -> Tensor:
        """What was made of the distinct codes, 0 where padded; p d -> b u d."""
        b, u = self.masses.shape
        return points.new_zeros(b * u, points.shape[1]).index_copy(0, self.slot, points).view(b, u, -1)


def collapse_repeats(codes: Tensor, indices: Tensor) -> Collapsed:
    """Equal codes of an image merged into one point with their joint mass; b c h w, b h w -> Collapsed.

    Exact for every transport cost: equal points are matched alike. Each place's gradient is its share of its
    point's, as if it had been transported on its own. u is the most distinct codes an image has.
    """
    b, c, h, w = codes.shape
    offset = torch.arange(b, device=indices.device)[:, None] * (int(indices.max()) + 1)
    distinct, group, count = (indices.flatten(1) + offset).unique(return_inverse=True, return_counts=True)
    image = distinct // offset[1, 0] if b > 1 else torch.zeros_like(distinct)
    held = torch.bincount(image, minlength=b)
    u = int(held.max())
    slot = torch.arange(len(distinct), device=image.device) - (held.cumsum(0) - held)[image] + image * u
    flat = rearrange(codes, "b c h w -> (b h w) c")
    count = count.to(codes.dtype)
    mean = codes.new_zeros(len(distinct), c).index_add(0, group.flatten(), flat) / count[:, None]
    masses = torch.zeros(b * u, device=codes.device, dtype=codes.dtype).index_copy(0, slot, count / (h * w))
    return Collapsed(mean, slot, masses.view(b, u))


def _cells(samples: int, h: int, w: int) -> tuple[int, int]:
    cuts = [(r, samples // r) for r in range(1, samples + 1) if samples % r == 0]
    cuts = [(r, q) for r, q in cuts if r <= h and q <= w]
    if not cuts:
        raise ValueError(
            f"{samples} samples do not cut a {h} × {w} grid into cells: give a product of two smaller sides"
        )
    return min(cuts, key=lambda cut: abs(math.log(h / cut[0]) - math.log(w / cut[1])))


class CodeDistribution(nn.Module):
    """The measure of a level's codes: "all" (each code a point), "gaussian" or "subsample"; b c h w -> b n c.

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
        self.gaussian = GaussianCodes(width, samples) if kind == "gaussian" else None

    def forward(self, codes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Codes on their grid to points; b c h w -> b n c, n = h·w or samples."""
        if self.kind == "subsample":
            return stratified(codes, self.samples, generator)
        flat = rearrange(codes, "b c h w -> b (h w) c")
        return flat if self.gaussian is None else self.gaussian(flat, generator)
