"""k-means: the codebook that clustering alone gives, without any training of an encoder."""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 15
START_PER_CENTROID = 10  # the start is drawn among this many points per centroid
SAME = 1e-6  # squared distances below this share of the largest squared norm are rounding errors


def kmeans(points: Tensor, count: int, *, seed: int, iterations: int = ITERATIONS) -> Tensor:
    """At most `count` centroids of points by Lloyd's algorithm in float32; n c -> k c.

    The start is k-means++ (Arthur & Vassilvitskii 2007) on a random part of the points. A centroid that loses all of
    its points moves to the point that is farthest from its own centroid. There are fewer than `count` centroids if
    there are fewer distinct points. Draws come from a generator with this seed. Raises ValueError without points, and
    FloatingPointError if a point holds NaN or infinity.
    """
    if not len(points) or count < 1:
        raise ValueError(f"k-means got {len(points)} points and {count} centroids: give at least one of both")
    if not points.isfinite().all():
        raise FloatingPointError("k-means got a point with NaN or infinity: leave it out, or check what gave it")
    points, draw = points.float(), torch.Generator().manual_seed(seed)
    if (points == points[0]).all():
        return points[:1].clone()
    mean = points.mean(0)
    points = points - mean  # smaller norms, so smaller rounding errors of distances
    floor = SAME * points.square().sum(1).max()
    part = torch.randperm(len(points), generator=draw)[: START_PER_CENTROID * count]
    centroids, before = _spread_start(points[part], count, draw), None
    for _ in range(iterations):
        nearest, distance = nearest_centroids(points, centroids)
        uses = torch.bincount(nearest, minlength=len(centroids))
        farthest = distance.topk(min(count - int((uses > 0).sum()), len(points)))
        moved = points[farthest.indices[farthest.values > floor]]
        if before is not None and not len(moved) and torch.equal(nearest, before):
            break
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        kept = uses > 0
        centroids, before = torch.cat([sums[kept] / uses[kept, None], moved]), None if len(moved) else nearest
    nearest, _ = nearest_centroids(points, centroids)
    return centroids[torch.bincount(nearest, minlength=len(centroids)) > 0] + mean


def nearest_centroids(points: Tensor, centroids: Tensor, *, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """Each point's nearest centroid and its squared distance, in chunks of points; n c, k c -> n int64, n."""
    norms, indices, distances = centroids.square().sum(1), [], []
    for part in points.split(chunk):
        least = torch.addmm(norms, part, centroids.T, alpha=-2).min(1)
        indices.append(least.indices)
        distances.append((least.values + part.square().sum(1)).clamp(min=0))
    return torch.cat(indices), torch.cat(distances)


def _spread_start(points: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Points drawn one by one with odds that grow with the squared distance to those before; n c -> k c."""
    chosen = [int(torch.randint(len(points), (1,), generator=draw))]
    distance = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < count and distance.max() > 0:
        chosen.append(int(torch.multinomial(distance, 1, generator=draw)))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen]
