"""Images passed through a trained tokenizer: the codes and reconstructions that every metric reads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor

from tavq_plugin.evaluation.probes.ridge import places_of
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.pixels import to_float, to_uint8


class EncodedImages(NamedTuple):
    """Codes and reconstructions of n images, on the CPU. Lists have one entry per level, fine → coarse."""

    pooled: list[Tensor]  # n c: quantized codes, averaged over the grid
    places: list[Tensor]  # n c h w: quantized codes, averaged to at most 8 × 8 places
    indices: list[Tensor | None]  # n h w; None for continuous features, which have no codes
    quantized: list[Tensor]  # s c h w, of the s images in `keep`
    reconstruction: Tensor  # n 3 h w uint8; no rows unless `decode`, or if the host has no decoder


def encode_images(
    tokenizer: Tokenizer, images: Tensor, *, batch_size: int, keep: Tensor | None = None, decode: bool = False
) -> EncodedImages:
    """Encode images, n 3 h w uint8, batch by batch.

    Args:
        tokenizer: Runs on its own device, in its current mode (train or eval).
        images: n 3 h w uint8.
        batch_size: Images per batch.
        keep: Positions of the images whose code grids are returned as `quantized`. Default: none.
        decode: If true, images are reconstructed too, unless the host has no decoder. Default: False.

    Raises:
        FloatingPointError: The codes hold NaN or infinity.
    """
    pooled, places, indices, quantized, decoded = [], [], [], [], []
    kept, device = set() if keep is None else set(keep.tolist()), next(tokenizer.parameters()).device
    for start in range(0, len(images), batch_size):
        codes = tokenizer.encode(to_float(images[start : start + batch_size].to(device)))
        pooled.append([reduce(level.quantized, "b c h w -> b c", "mean").cpu() for level in codes.levels])
        places.append([places_of(level.quantized).cpu() for level in codes.levels])
        indices.append([level.indices.cpu() for level in codes.levels])
        here = [i for i in range(len(codes.final.indices)) if start + i in kept]
        quantized.append([level.quantized[here].cpu() for level in codes.levels])
        if decode:
            try:
                decoded.append(to_uint8(tokenizer.decode(codes)).cpu())
            except NotImplementedError:  # an adapter says so of a host without a decoder
                decode = False
    if not all(part.isfinite().all() for parts in pooled for part in parts):
        raise FloatingPointError("the codes hold NaN or infinity: the run is broken and cannot be evaluated")
    reconstruction = torch.cat(decoded) if decode and decoded else images[:0]
    return EncodedImages(_join(pooled), _join(places), [*_join(indices)], _join(quantized), reconstruction)


def codebook_sizes(tokenizer: Tokenizer, greatest_index: int) -> list[int]:
    """Number of codes of each level's codebook; if the host has no explicit one, its greatest index seen plus one."""
    table = tokenizer.adapter.codebook()
    shared = len(table) if table is not None else greatest_index + 1
    own = [len(embedding.get_parameter("weight")) for embedding in tokenizer.hierarchy.own]
    return [*(own or [shared] * len(tokenizer.adapter.taps)), shared]


def share_beyond_indices(quantized: Tensor, indices: Tensor) -> float:
    """Share of the vectors' variance that their indices leave open, 0 to 1; s c h w, s h w.

    It is 0, up to rounding, if each index stands for one vector, and above if further code books add to the vectors.

    >>> table = torch.tensor([[0.0], [1.0], [5.0]])
    >>> indices = torch.tensor([[[0, 1], [2, 1]]])
    >>> share_beyond_indices(table[indices].permute(0, 3, 1, 2), indices)
    0.0
    """
    vectors, flat = rearrange(quantized.double(), "s c h w -> (s h w) c"), indices.flatten()
    if not len(flat):
        return 0.0
    count = torch.bincount(flat).clamp(min=1)
    sums = vectors.new_zeros(len(count), vectors.shape[1]).index_add_(0, flat, vectors)
    within = (vectors - (sums / count[:, None])[flat]).square().sum()
    return (within / (vectors - vectors.mean(0)).square().sum().clamp(min=1e-300)).item()


def _join(batches: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(level) for level in zip(*batches, strict=True)]
