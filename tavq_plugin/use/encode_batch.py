"""The numbers of the codes of every level, from one pass of the host's encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from tavq_plugin.hosts.hooks import tapped
from tavq_plugin.hosts.token_vectors import read_tokens
from tavq_plugin.hosts.tokenizer import Tokenizer, codes_from, tapped_paths
from tavq_plugin.pixels import to_float


@torch.no_grad()
def encode_batch(tokenizer: Tokenizer, images: Tensor, *, levels: str = "all") -> list[Tensor]:
    """Indices of levels 1, 2 and 3; b 3 r r uint8 -> for each level b h w int64, on the tokenizer's device.

    The last level is what `tokenizer.tokens` gives: b h w, or the host's own shape, such as b h w depth.

    Args:
        tokenizer: Runs on its own device, in its current mode (train or eval).
        images: b 3 r r uint8.
        levels: "all", or "final" for the level that the decoder reads, alone; levels 1 and 2 are then not computed.

    Raises:
        ValueError: `levels` is unknown.
        FloatingPointError: The latents are not finite.
    """
    if levels not in ("all", "final"):
        raise ValueError(f"levels={levels!r}: give all or final")
    adapter, pixels = tokenizer.adapter, to_float(images.to(next(tokenizer.parameters()).device))
    with tapped(tokenizer.host, at=[adapter.quantizer] if levels == "final" else tapped_paths(adapter)) as recorder:
        adapter.encode(pixels)
    seen, added = recorder.take(), list[Tensor]()
    if levels == "all":
        added = [level.indices for level in codes_from(adapter, tokenizer.hierarchy, seen).levels[:-1]]
    call = seen[adapter.quantizer]
    if not adapter.parse(call.z_in, call.output).vectors.isfinite().all():
        raise FloatingPointError("the codes hold NaN or infinity: the run is broken")
    return [*added, read_tokens(adapter, call.z_in, call.output)]
