"""How well codes can be predicted from the codes before them: the loss that a generator of codes starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.methods.base import drawn_from
from tavq_plugin.tasks.causal_model import causal_transformer
from tavq_plugin.tasks.fit_model import FitSettings, fit_model
from tavq_plugin.tasks.task import ModelSettings
from tavq_plugin.tasks.tokens import CodeSequences, TokenLayout

NOTE = (
    "bits_per_code: cross-entropy of a causal model on the held-out codes, from the codes before each. Codes that are "
    "good for pixels and text can be hard to model; a tokenizer that uses more of its codes has more bits to predict."
)


class BitsPerCode(NamedTuple):
    """Bits per code of n held-out images, by the model, and by how often each code occurs in the training images."""

    model: Tensor  # n
    frequencies: Tensor  # n


class CodeModel(nn.Module):
    """Predicts each code of an image from those before it; the token `mask` of the layout stands before the first."""

    def __init__(self, layout: TokenLayout, settings: ModelSettings) -> None:
        super().__init__()
        self.layout = layout
        self.codes = causal_transformer(layout.vocabulary + 1, settings, longest=layout.length + 1)
        self.register_buffer("allowed", layout.allowed(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Bits of each code; b n int64 -> b n. A code that its place cannot hold has no part in the sum."""
        start = tokens.new_full((len(tokens), 1), self.layout.mask)
        hidden = self.codes.model(torch.cat([start, tokens[:, :-1]], 1), use_cache=False).last_hidden_state
        allowed: Tensor = self.get_buffer("allowed")
        logits = self.codes.lm_head(hidden)[..., :-1].float().masked_fill(~allowed, -torch.inf)
        nats = F.cross_entropy(rearrange(logits, "b n v -> (b n) v"), tokens.flatten(), reduction="none")
        return nats.view_as(tokens) / math.log(2)


def bits_per_code(
    train: CodeSequences,
    held_out: CodeSequences,
    *,
    model: ModelSettings,
    fit: FitSettings,
    folder: Path,
    made_from: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> BitsPerCode:
    """Train a causal model on codes alone, and measure it on the held-out ones; kept in `folder`."""
    with drawn_from(fit.seed):
        net = CodeModel(train.layout, model)

    def loss_of(net: nn.Module, rows: Tensor, draw: torch.Generator) -> Tensor:
        return net(train.tokens[rows].to(next(net.parameters()).device)).mean()

    fit_model(
        net, loss_of, n=len(train.tokens), settings=fit, folder=folder,
        made_from={**made_from, "model": asdict(model)}, progress=progress,
    )  # fmt: skip
    device = next(net.parameters()).device
    with torch.no_grad():
        bits = [net(tokens.to(device)).mean(1).cpu() for tokens in held_out.tokens.split(100)]
    return BitsPerCode(torch.cat(bits).double(), bits_by_frequency(train, held_out))


def bits_by_frequency(train: CodeSequences, held_out: CodeSequences) -> Tensor:
    """Bits per code if each code is expected as often as in the training images, at any place; n.

    Every code counts once more than it was seen, so that one that was not seen has a probability.
    """
    layout = train.layout
    counts = torch.bincount(train.tokens.flatten(), minlength=layout.vocabulary).double() + 1
    bits = []
    for grid, offset, part in zip(
        layout.grids, layout.offsets, held_out.tokens.split([g.height * g.width for g in layout.grids], 1), strict=True
    ):
        of_level = counts[offset : offset + grid.codes]
        bits.append(-(of_level / of_level.sum()).log2()[part - offset])
    return torch.cat(bits, 1).mean(1)
