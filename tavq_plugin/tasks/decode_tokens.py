"""From the tokens of a task's model to images, by the run's own decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tavq_plugin.pixels import to_uint8
from tavq_plugin.side_effects import eval_without_trace
from tavq_plugin.tasks.task import EncodedRun


def decode_tokens(run: EncodedRun, tokens: Tensor, *, batch_size: int = 50) -> Tensor:
    """The images of tokens; b n int64 -> b 3 h w uint8, on the CPU. Only the last level reaches the decoder.

    The run's tokenizer stays as it was: its mode, its buffers and the random streams.

    Raises:
        ValueError: A token is none of its place (`mask` is none of any), or the host's decoder is of no use.
        FloatingPointError: The decoder gives NaN or infinity.
    """
    codes, tokenizer = run.held_out, run.tokenizer
    if tokenizer.decode_fails:
        raise ValueError(f"{run.name}: {tokenizer.decode_fails}")
    indices = codes.layout.unflatten(tokens.cpu())[0]
    table = codes.vectors[: codes.layout.grids[0].codes]
    device, images = next(tokenizer.parameters()).device, []
    with eval_without_trace(tokenizer):
        for part in indices.split(batch_size):
            vectors = rearrange(F.embedding(part, table), "b h w c -> b c h w").to(device)
            try:
                made = tokenizer.adapter.decode(vectors)
            except NotImplementedError as error:
                raise ValueError(f"{run.name} cannot make images: {error}") from error
            if not made.isfinite().all():
                raise FloatingPointError(f"the decoder of {run.name} gives NaN or infinity: the run is broken")
            images.append(to_uint8(made).cpu())
    return torch.cat(images)
