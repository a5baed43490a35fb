"""LG-VQ's networks: visual tokens of a quantized map, masked words read from them, and codes as words see them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

PLACES = 30  # tokens that the release cuts a text to: it has one mask vector for each, and averages over their pairs
STD = 0.01  # of positions, CLS, mask vectors and both projections at the start, as released


class VisualTransformer(nn.Module):
    """Quantized map -> visual tokens, CLS first; b c h w -> b (1 + h w) d. CLIP's vision transformer on codes.

    The vectors of the codes are its tokens as they are, so its width is theirs. Positions are learnt for one grid, and
    resized for others.
    """

    def __init__(self, width: int, text: int, grid: tuple[int, int], *, layers: int, heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.cls = nn.Parameter(STD * torch.randn(width))
        self.positions = nn.Parameter(STD * torch.randn(1 + grid[0] * grid[1], width))
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_pre_norm_block(width, heads, layers) for _ in range(layers))
        self.project = nn.Parameter(STD * torch.randn(width, text))

    def forward(self, codes: Tensor) -> Tensor:
        """The tokens of a map."""
        cls = repeat(self.cls, "c -> b 1 c", b=len(codes))
        tokens = torch.cat([cls, rearrange(codes, "b c h w -> b (h w) c")], 1) + self.positions_of(codes.shape[2:])
        tokens = self.before(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.after(tokens) @ self.project

    def positions_of(self, grid: tuple[int, ...]) -> Tensor:
        """The positions of CLS and of a grid's places; -> (1 + h w) c."""
        if tuple(grid) == self.grid:
            return self.positions
        h, w = self.grid
        places = rearrange(self.positions[1:], "(h w) c -> 1 c h w", h=h, w=w)
        resized = F.interpolate(places, size=tuple(grid), mode="bilinear", align_corners=False)
        return torch.cat([self.positions[:1], rearrange(resized, "1 c h w -> (h w) c")])


class MaskedWordReader(nn.Module):
    """Texts with hidden words, and visual tokens -> scores of all words of the vocabulary at each place; b m u.

    Hidden words are replaced by learnt vectors, one per place of the text. Two post-norm decoder layers read the text
    and the visual tokens; the head is a linear layer, GELU, LayerNorm, the product with the vocabulary, and its bias.
    """

    def __init__(self, text: int, vocabulary: int, *, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.mask_vectors = nn.Parameter(STD * torch.randn(PLACES, text))
        self.layers = nn.ModuleList(_post_norm_layer(text, heads, dropout) for _ in range(layers))
        self.head = nn.Sequential(nn.Linear(text, text), nn.GELU(), nn.LayerNorm(text))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, tokens: Tensor, hidden: Tensor, mask: Tensor, visual: Tensor, vocabulary: Tensor) -> Tensor:
        """The scores; b m d, b m bool, b m bool, b n d, u d -> b m u."""
        places = torch.arange(tokens.shape[1], device=tokens.device) % PLACES
        shown = torch.where(hidden[..., None], self.mask_vectors[places], tokens) * mask[..., None]
        padding = ~mask
        padding[:, 0] &= mask.any(1)  # a text without words keeps one place, so that attention has something to read
        for layer in self.layers:
            shown = layer(shown, visual, tgt_key_padding_mask=padding)
        return self.head(shown) @ vocabulary.T + self.bias


def _pre_norm_block(width: int, heads: int, layers: int) -> nn.TransformerEncoderLayer:
    """A block of CLIP, with the release's initial scales."""
    block = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation=quick_gelu, batch_first=True, norm_first=True
    )
    nn.init.normal_(block.self_attn.in_proj_weight, std=width**-0.5)
    nn.init.normal_(block.linear1.weight, std=(2 * width) ** -0.5)
    for weight in (block.self_attn.out_proj.weight, block.linear2.weight):
        nn.init.normal_(weight, std=width**-0.5 * (2 * layers) ** -0.5)
    return block


def _post_norm_layer(width: int, heads: int, dropout: float) -> nn.TransformerDecoderLayer:
    """A layer of the release's decoder, with its initial scales; its dropout is on outputs, not on attention."""
    layer = nn.TransformerDecoderLayer(width, heads, width, dropout=dropout, layer_norm_eps=1e-12, batch_first=True)
    for attention in (layer.self_attn, layer.multihead_attn):
        attention.dropout = 0.0
        for weight in (attention.in_proj_weight, attention.out_proj.weight):
            nn.init.normal_(weight, std=width**-0.5)
    for linear in (layer.linear1, layer.linear2):
        nn.init.normal_(linear.weight, std=width**-0.5)
    return layer


def code_relations(codes: int, text: int) -> nn.Sequential:
    """The layer that brings codes to the text's width for their relations; ... c -> ... d."""
    linear = nn.Linear(codes, text)
    nn.init.normal_(linear.weight, std=STD)
    return nn.Sequential(linear, nn.GELU(), nn.LayerNorm(text))


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's activation, x σ(1.702 x).

    >>> quick_gelu(torch.tensor([0.0, 100.0]))
    tensor([  0., 100.])
    """
    return x * torch.sigmoid(1.702 * x)
