"""Problems for the transport benchmarks: codes b n c, a projection c d and texts b m d, from a seed."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH = 256  # of the codes
FAMILIES = ("gaussian", "spatial", "clustered", "repeated")


class Clouds(NamedTuple):
    """One batch."""

    codes: Tensor  # b n c
    text: Tensor  # b m d
    project: Tensor  # c d


def clouds(family: str, b: int, n: int, m: int, d: int, *, seed: int = 0) -> Clouds:
    """Codes and texts whose projected codes have about unit length.

    gaussian: both normal. clustered: both around the same dozen centres, of unit length, spread .55. repeated: as
    clustered, from n / 10 distinct codes (a VQ grid). spatial: a smooth random field over a √n × √n grid, texts near
    places of it.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    project = normal(WIDTH, d) / WIDTH**0.5
    if family == "gaussian":
        return Clouds(normal(b, n, WIDTH), normal(b, m, d), project)
    if family == "spatial":
        side = round(n**0.5)
        coarse = normal(b, WIDTH, max(2, side // 8), max(2, side // 8))
        field = F.interpolate(coarse, (side, n // side), mode="bicubic") + 0.3 * normal(b, WIDTH, side, n // side)
        codes = F.normalize(field.flatten(2).mT, dim=2)
        places = torch.randint(codes.shape[1], (b, m, 1), generator=draw)
        text = codes.take_along_dim(places, 1) @ project * (WIDTH / d) ** 0.5
        return Clouds(codes, F.normalize(text + 0.4 * normal(b, m, d) / d**0.5, dim=2), project)
    if family not in FAMILIES:
        raise ValueError(f"family {family!r}: one of {', '.join(FAMILIES)}")
    centres = F.normalize(normal(b, 12, WIDTH), dim=2)

    def around(means: Tensor, count: int) -> Tensor:
        pick = torch.randint(12, (b, count, 1), generator=draw)
        noise = 0.55 * normal(b, count, means.shape[2]) / means.shape[2] ** 0.5
        return F.normalize(means.take_along_dim(pick, 1) + noise, dim=2)

    codes = around(centres, n // 10 if family == "repeated" else n)
    if family == "repeated":
        codes = codes.take_along_dim(torch.randint(codes.shape[1], (b, n, 1), generator=draw), 1)
    return Clouds(codes, around(F.normalize(centres @ project, dim=2), m), project)
