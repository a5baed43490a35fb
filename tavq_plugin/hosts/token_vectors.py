"""Numbers of codes, which a generator is trained on: read from a host's quantizer call, and turned into vectors again.

A quantizer's adapter whose vectors are made of several codes may have two more methods: `read_tokens(z_in, output)`,
which gives all of their numbers, and `vectors_of(tokens)`, which gives the vectors, b c h w; and the attribute
`code_count`, above which no number is taken. A host's adapter may have `own_tokens(images)` and
`decode_own_tokens(tokens)`, the host's own path both ways, as the user's tokens= and decode_tokens= of `wrap`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import EinopsError
from torch import Tensor

from tavq_plugin.distributed import gather_sharded
from tavq_plugin.hosts.hooks import tapped
from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.hosts.trial_run import HostReading, describe, parsed
from tavq_plugin.hosts.verify_reading import equals_vectors, look_up


def tokens_of_images(adapter: Adapter, images: Tensor) -> Tensor:
    """Numbers of a host's own codes, without gradient; b 3 h w -> b h w, or the host's own shape.

    Raises ValueError if the user's tokens= gives no tensor of whole numbers.
    """
    with torch.no_grad():
        own = getattr(adapter, "own_tokens", None)
        if own is None:
            with tapped(adapter.model, at=[adapter.quantizer]) as recorder:
                adapter.encode(images)
            call = recorder.take()[adapter.quantizer]
            return read_tokens(adapter, call.z_in, call.output)
        tokens = own(images)
    if not _are_whole(tokens):
        raise ValueError(
            f"tokens= gives {describe(tokens)}, and one tensor of whole numbers was needed: put several together, such "
            "as torch.cat(parts, dim=1), and take them apart in decode_tokens="
        )
    return tokens.long()


def image_of_tokens(adapter: Adapter, tokens: Tensor) -> Tensor:
    """Images from what `tokens_of_images` returned, without gradient; b h w -> b 3 h w.

    Raises ValueError if these are no tokens of this host.
    """
    own = getattr(adapter, "decode_own_tokens", None)
    with torch.no_grad():
        if own is None:
            return adapter.decode(vectors_of_tokens(adapter, tokens))
        _require_whole(tokens)
        with _shape_named(tokens):
            return own(tokens.to(next(adapter.model.parameters()).device))


def read_tokens(adapter: Adapter, z_in: Any, output: Any) -> Tensor:
    """Numbers of the codes at each place, from one call of the quantizer; -> b h w, or the host's own shape."""
    reader = _reader_of_sums(adapter)
    return parsed(adapter.parse, z_in, output).indices if reader is None else reader.read_tokens(z_in, output)


def vectors_of_tokens(adapter: Adapter, tokens: Tensor) -> Tensor:
    """The vectors that the decoder reads, without gradient; b h w -> b c h w.

    Raises ValueError if the tokens are not integers, have another shape or are no numbers of codes, or if the host has
    no explicit codebook.
    """
    _require_whole(tokens)
    with torch.no_grad():
        reader = _reader_of_sums(adapter)
        if reader is not None:
            _require_numbers_below(getattr(reader, "code_count", None), tokens)
            with _shape_named(tokens):
                return reader.vectors_of(tokens.to(next(adapter.model.parameters()).device).long())
        table = gather_sharded(adapter.codebook())
        if table is None:
            raise ValueError(
                "this host has no explicit codebook (k c), which gives the vectors of tokens: give codebook="
            )
        if tokens.ndim != 3:
            raise ValueError(f"the tokens are {describe(tokens)}, and b h w was needed, as `tokens` returns them")
        _require_numbers_below(len(table), tokens)
        return look_up(tokens.to(table.device).long(), table)


def tokens_problem(adapter: Adapter, reading: HostReading) -> str:
    """Why the quantizer's vectors cannot be had from its tokens; empty if they can, on this run of the host."""
    if not reading.final.vectors.isfinite().all() or hasattr(adapter, "decode_own_tokens"):
        return ""  # the host's own way to decode them is compared with its picture, in `own_tokens_problem`
    if hasattr(adapter, "own_tokens"):
        return "tokens cannot be decoded: tokens= was given alone; give decode_tokens= too, a function of the tokens"
    try:
        vectors = vectors_of_tokens(adapter, read_tokens(adapter, reading.z_in, reading.seen[adapter.quantizer].output))
    except (ValueError, IndexError) as error:
        return f"tokens cannot be decoded: {error}"
    if vectors.shape == reading.final.vectors.shape and equals_vectors(vectors, reading):
        return ""
    return (
        "tokens cannot be decoded: the vectors that the decoder reads are not the codebook's rows at the indices (sums "
        "of several codes, soft codes, another table). Decode the host's vectors, by decode(codes); or give the "
        "host's own way, tokens= (a function of images) and decode_tokens= (a function of tokens); or codebook=; or an "
        "adapter whose quantizer has read_tokens and vectors_of"
    )


def _are_whole(tokens: object) -> bool:
    return isinstance(tokens, Tensor) and not tokens.is_floating_point() and tokens.dtype != torch.bool


def _require_whole(tokens: object) -> None:
    if not _are_whole(tokens):
        raise ValueError(f"the tokens are {describe(tokens)}, and whole numbers were needed, as `tokens` returns them")


def _require_numbers_below(count: int | None, tokens: Tensor) -> None:
    low, high = (int(tokens.min()), int(tokens.max())) if tokens.numel() else (0, 0)
    if low < 0 or (count is not None and high >= count):
        allowed = "0 or more" if count is None else f"0 to {count - 1}"
        raise ValueError(f"the tokens run from {low} to {high}, and {allowed} was needed")


@contextmanager
def _shape_named(tokens: Tensor) -> Iterator[None]:
    """Turn an error of a host or its adapter, which tokens of another shape cause, into one that names the shape."""
    try:
        yield
    except (RuntimeError, IndexError, AssertionError, EinopsError) as error:
        raise ValueError(
            f"the tokens are {describe(tokens)}, which this host does not decode; give them as `tokens` returns them. "
            f"It raised {type(error).__name__}: {error}"
        ) from error


def _reader_of_sums(adapter: Adapter) -> Any:
    """The quantizer's adapter if it reads several tokens per place; else None."""
    reader = getattr(adapter, "quantizer_adapter", adapter)
    return reader if hasattr(reader, "read_tokens") and hasattr(reader, "vectors_of") else None
