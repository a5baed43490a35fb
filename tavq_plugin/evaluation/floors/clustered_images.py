"""Images encoded by the centroids of a k-means, as a tokenizer would encode them by its codebook."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange, reduce
from torch import Tensor

from tavq_plugin.evaluation.encoded_images import EncodedImages
from tavq_plugin.evaluation.floors.kmeans import kmeans, nearest_centroids
from tavq_plugin.evaluation.probes.ridge import places_of

FITTED_VECTORS = 50_000  # k-means is fitted on at most this many vectors
FITTED_IMAGES = 1000  # of at most this many images
BATCH_SIZE = 50  # images
Vectors = Callable[[Tensor], Tensor]  # images to grids of vectors; b 3 h w uint8 -> b c h w


def cluster_vectors(vectors: Vectors, images: Tensor, count: int, *, seed: int) -> Tensor:
    """At most `count` centroids of the images' vectors; n 3 h w uint8 -> k c.

    They are fitted on a random part of the vectors of a random part of the images, drawn by a generator with this seed.
    Raises as `kmeans` does.
    """
    draw = torch.Generator().manual_seed(seed)
    batches = images[torch.randperm(len(images), generator=draw)[:FITTED_IMAGES]].split(BATCH_SIZE)
    share = max(1, FITTED_VECTORS // len(batches))
    points = []
    for batch in batches:
        flat = rearrange(vectors(batch), "b c h w -> (b h w) c")
        points.append(flat[torch.randperm(len(flat), generator=draw)[:share]])
    return kmeans(torch.cat(points), count, seed=seed)


def encode_by_centroids(
    vectors: Vectors,
    centroids: Tensor,
    images: Tensor,
    *,
    keep: Tensor | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> EncodedImages:
    """One level of codes: each vector's nearest centroid; k c, n 3 h w uint8.

    Args:
        vectors: Gives the grid of vectors of a batch of images, b 3 h w uint8 -> b c h w.
        centroids: The codes, k c.
        images: n 3 h w uint8.
        keep: Positions of the images whose code grids are returned as `quantized`. Default: none.
        decode: Gives images of a grid of codes, b c h w -> b 3 h w uint8. Default: there is no reconstruction.

    Raises:
        FloatingPointError: A vector holds NaN or infinity.
    """
    kept = set() if keep is None else set(keep.tolist())
    pooled, places, indices, grids, decoded = [], [], [], [], []
    for start in range(0, len(images), BATCH_SIZE):
        grid = vectors(images[start : start + BATCH_SIZE])
        nearest, distance = nearest_centroids(rearrange(grid, "b c h w -> (b h w) c"), centroids)
        if not distance.isfinite().all():
            raise FloatingPointError("a vector holds NaN or infinity: it has no nearest centroid; check the encoder")
        index = rearrange(nearest, "(b h w) -> b h w", h=grid.shape[2], w=grid.shape[3])
        quantized = rearrange(centroids[index], "b h w c -> b c h w")
        pooled.append(reduce(quantized, "b c h w -> b c", "mean"))
        places.append(places_of(quantized))
        indices.append(index)
        grids.append(quantized[[i for i in range(len(index)) if start + i in kept]])
        if decode:
            decoded.append(decode(quantized))
    return EncodedImages(
        [torch.cat(pooled)],
        [torch.cat(places)],
        [torch.cat(indices)],
        [torch.cat(grids)],
        torch.cat(decoded) if decode else images[:0],
    )
