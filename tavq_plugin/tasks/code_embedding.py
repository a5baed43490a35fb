"""Tokens of codes as vectors of a transformer: mapped from the codebook, or learnt from the indices (the control)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tavq_plugin.tasks.tokens import CodeSequences


class CodeEmbedding(nn.Module):
    """Embeds the tokens of a layout; b n int64 -> b n d.

    With `kind="codebook"`, an embedding is a linear map of the code's vector, so that codes which mean alike start
    alike. The vectors are fixed and have mean 0 and variance 1 per channel. With "indices", each token has a row of
    its own to learn. The token `mask` and the places have rows of their own in both.

    Raises ValueError for another kind.
    """

    def __init__(self, codes: CodeSequences, width: int, *, kind: str = "codebook") -> None:
        super().__init__()
        layout = codes.layout
        self.grids = layout.grids
        if kind not in ("codebook", "indices"):
            raise ValueError(f'embedding={kind!r}: give "codebook" or "indices"')
        self.place = nn.Parameter(0.02 * torch.randn(layout.length, width))
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        self.vectors: Tensor
        if kind == "codebook":
            centred = codes.vectors.float() - codes.vectors.float().mean(0)
            scaled = centred / centred.std(0, correction=0).clamp(min=1e-6)
            self.register_buffer("vectors", scaled, persistent=False)
            self.rows: nn.Module = nn.Linear(codes.vectors.shape[1], width)
        else:
            self.register_buffer("vectors", torch.arange(layout.vocabulary), persistent=False)
            self.rows = nn.Embedding(layout.vocabulary, width)
            nn.init.normal_(self.rows.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """b n int64 -> b n d, with each place's own row added; `mask` tokens have the mask's row."""
        table = torch.cat([self.rows(self.vectors), self.mask[None]])
        return table[tokens] + self.place[: tokens.shape[1]]
