"""Images passed through a trained tokenizer: the codes and reconstructions that every metric reads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import reduce
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
    reconstruction: Tensor  # n 3 h w uint8; no rows unless `decode`


def encode_images(
    tokenizer: Tokenizer, images: Tensor, *, batch_size: int, keep: Tensor | None = None, decode: bool = False
) -> EncodedImages:
    """Encode images, n 3 h w uint8, batch by batch.

    Args:
        tokenizer: Runs on its own device, in its current mode (train or eval).
        images: n 3 h w uint8.
        batch_size: Images per batch.
        keep: Positions of the images whose code grids are returned as `quantized`. Default: none.
        decode: If true, images are reconstructed too. Default: False.

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
            decoded.append(to_uint8(tokenizer.decode(codes)).cpu())
    if not all(part.isfinite().all() for parts in pooled for part in parts):
        raise FloatingPointError("the codes hold NaN or infinity: the run is broken and cannot be evaluated")
    reconstruction = torch.cat(decoded) if decode else images[:0]
    return EncodedImages(_join(pooled), _join(places), [*_join(indices)], _join(quantized), reconstruction)


def codebook_sizes(tokenizer: Tokenizer, greatest_index: int) -> list[int]:
    """Number of codes of each level's codebook; if the host has no explicit one, its greatest index seen plus one."""
    table = tokenizer.adapter.codebook()
    shared = len(table) if table is not None else greatest_index + 1
    own = [len(embedding.get_parameter("weight")) for embedding in tokenizer.hierarchy.own]
    return [*(own or [shared] * len(tokenizer.adapter.taps)), shared]


def _join(batches: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(level) for level in zip(*batches, strict=True)]
