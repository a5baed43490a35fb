"""Numbers of codes, which a generator is trained on: read from a host's quantizer call, and turned into vectors again.

A quantizer's adapter whose vectors are sums of several codes may have two more methods: `read_tokens(z_in, output)`,
which gives all of their numbers, and `vectors_of(tokens)`, which gives the vectors, b c h w.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tavq_plugin.distributed import gather_sharded
from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.hosts.trial_run import HostReading, describe, parsed
from tavq_plugin.hosts.verify_reading import equals_vectors, look_up


def read_tokens(adapter: Adapter, z_in: Any, output: Any) -> Tensor:
    """Numbers of the codes at each place, from one call of the quantizer; -> b h w, or the host's own shape."""
    reader = _reader_of_sums(adapter)
    return parsed(adapter.parse, z_in, output).indices if reader is None else reader.read_tokens(z_in, output)


def vectors_of_tokens(adapter: Adapter, tokens: Tensor) -> Tensor:
    """The vectors that the decoder reads, without gradient; b h w -> b c h w.

    Raises ValueError if the tokens are not integers, have another shape or are no numbers of codes, or if the host has
    no explicit codebook.
    """
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"the tokens are {describe(tokens)}, and whole numbers were needed, as `tokens` returns them")
    with torch.no_grad():
        reader = _reader_of_sums(adapter)
        if reader is not None:
            return reader.vectors_of(tokens)
        table = gather_sharded(adapter.codebook())
        if table is None:
            raise ValueError(
                "this host has no explicit codebook (k c), which gives the vectors of tokens: give codebook="
            )
        if tokens.ndim != 3:
            raise ValueError(f"the tokens are {describe(tokens)}, and b h w was needed, as `tokens` returns them")
        low, high = (int(tokens.min()), int(tokens.max())) if tokens.numel() else (0, 0)
        if low < 0 or high >= len(table):
            raise ValueError(f"the tokens run from {low} to {high}, and 0 to {len(table) - 1} was needed")
        return look_up(tokens.to(table.device).long(), table)


def tokens_problem(adapter: Adapter, reading: HostReading) -> str:
    """Why the quantizer's vectors cannot be had from its tokens; empty if they can, on this run of the host."""
    if not reading.final.vectors.isfinite().all():
        return ""
    try:
        vectors = vectors_of_tokens(adapter, read_tokens(adapter, reading.z_in, reading.seen[adapter.quantizer].output))
    except (ValueError, IndexError) as error:
        return f"tokens cannot be decoded: {error}"
    if vectors.shape == reading.final.vectors.shape and equals_vectors(vectors, reading):
        return ""
    return (
        "tokens cannot be decoded: the vectors that the decoder reads are not the codebook's rows at the indices (sums "
        "of several codes, soft codes, another table). Decode the host's vectors, by decode(codes); or give codebook=, "
        "or an adapter whose quantizer has read_tokens and vectors_of"
    )


def _reader_of_sums(adapter: Adapter) -> Any:
    """The quantizer's adapter if it reads several tokens per place; else None."""
    reader = getattr(adapter, "quantizer_adapter", adapter)
    return reader if hasattr(reader, "read_tokens") and hasattr(reader, "vectors_of") else None
