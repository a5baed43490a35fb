"""Problems for the transport benchmarks, from a seed, and their exact answers."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.ot import solve

WIDTH = 256  # of the codes
EPSILON = 0.02  # the blur of all entropic methods, as a share of the problems' mean scale
FAMILIES = ("gaussian", "spatial", "clustered", "repeated")


class TransportProblem(NamedTuple):
    """One batch of codes and texts, and the projection between their widths."""

    codes: Tensor  # b n c
    text: Tensor  # b m d
    project: Tensor  # c d


def transport_problem(family: str, b: int, n: int, m: int, d: int, *, seed: int = 0) -> TransportProblem:
    """Codes and texts; the projected codes have about unit length.

    gaussian: both normal. clustered: both around the same dozen centres, of unit length, spread .55. repeated: as
    clustered, from n / 10 distinct codes (a VQ grid). spatial: a smooth random field over a √n × √n grid, texts near
    places of it.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    project = normal(WIDTH, d) / WIDTH**0.5
    if family == "gaussian":
        return TransportProblem(normal(b, n, WIDTH), normal(b, m, d), project)
    if family == "spatial":
        side = round(n**0.5)
        coarse = normal(b, WIDTH, max(2, side // 8), max(2, side // 8))
        field = F.interpolate(coarse, (side, n // side), mode="bicubic") + 0.3 * normal(b, WIDTH, side, n // side)
        codes = F.normalize(field.flatten(2).mT, dim=2)
        places = torch.randint(codes.shape[1], (b, m, 1), generator=draw)
        text = codes.take_along_dim(places, 1) @ project * (WIDTH / d) ** 0.5
        return TransportProblem(codes, F.normalize(text + 0.4 * normal(b, m, d) / d**0.5, dim=2), project)
    if family not in FAMILIES:
        raise ValueError(f"family {family!r} is unknown: give one of {', '.join(FAMILIES)}")
    centres = F.normalize(normal(b, 12, WIDTH), dim=2)

    def around(means: Tensor, count: int) -> Tensor:
        pick = torch.randint(12, (b, count, 1), generator=draw)
        noise = 0.55 * normal(b, count, means.shape[2]) / means.shape[2] ** 0.5
        return F.normalize(means.take_along_dim(pick, 1) + noise, dim=2)

    codes = around(centres, n // 10 if family == "repeated" else n)
    if family == "repeated":
        codes = codes.take_along_dim(torch.randint(codes.shape[1], (b, n, 1), generator=draw), 1)
    return TransportProblem(codes, around(F.normalize(centres @ project, dim=2), m), project)


class Exact(NamedTuple):
    """POT's exact answer in float64."""

    cost: Tensor  # b
    gain: Tensor  # b
    grads: list[Tensor]  # of codes, text and projection
    epsilon: float  # `EPSILON` of the problems' mean scale


def exact(problem: TransportProblem) -> Exact:
    """The reference answer, and the absolute blur for every entropic method."""
    leaves = [t.double().requires_grad_() for t in problem]
    result = solve(leaves[0], leaves[1], project=leaves[2], solver="emd")
    result.value.sum().backward()
    relative = solve(*(t.detach() for t in leaves[:2]), project=leaves[2].detach(), epsilon=EPSILON, max_passes=1)
    grads = [leaf.grad for leaf in leaves]
    return Exact(result.transport_cost, result.gain, grads, relative.epsilon.mean().item())


def cosine(ours: Tensor, theirs: Tensor) -> float:
    """The cosine between two gradients, each taken as one vector."""
    return torch.cosine_similarity(ours.double().flatten().cpu(), theirs.flatten().cpu(), dim=0).item()
