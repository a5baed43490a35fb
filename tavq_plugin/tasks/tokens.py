"""From images to sequences of tokens and back: the one place that knows the order of codes and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor


class LevelGrid(NamedTuple):
    """The grid of one level, and the number of codes in its codebook."""

    height: int
    width: int
    codes: int


@dataclass(frozen=True)
class TokenLayout:
    """How the codes of one image become a sequence: level after level, each row by row from the top left.

    The last level, which the decoder reads, comes first; finer ones may follow. A token is a code's index plus the
    number of codes of the levels before it, so that no two levels share a token. One token more, `mask`, stands for
    a code that is not known.

    >>> layout = TokenLayout((LevelGrid(1, 2, 5), LevelGrid(2, 2, 3)))
    >>> layout.length, layout.vocabulary, layout.offsets, layout.mask
    (6, 8, (0, 5), 8)
    """

    grids: tuple[LevelGrid, ...]  #: in the order of the sequence

    def __post_init__(self) -> None:
        if not self.grids or any(min(grid) < 1 for grid in self.grids):
            raise ValueError(
                f"a layout needs at least one grid, and each at least one place and code; got {self.grids}"
            )

    @property
    def length(self) -> int:
        """Tokens of an image."""
        return sum(grid.height * grid.width for grid in self.grids)

    @property
    def vocabulary(self) -> int:
        """Number of tokens, without `mask`."""
        return sum(grid.codes for grid in self.grids)

    @property
    def mask(self) -> int:
        """The token of a code that is not known."""
        return self.vocabulary

    @property
    def offsets(self) -> tuple[int, ...]:
        """The token of each level's code 0."""
        return tuple(sum(grid.codes for grid in self.grids[:i]) for i in range(len(self.grids)))

    def flatten(self, indices: Sequence[Tensor]) -> Tensor:
        """The tokens of images; for each grid b h w int64 -> b n int64. ValueError for an index out of its codebook."""
        parts = []
        for grid, offset, index in zip(self.grids, self.offsets, indices, strict=True):
            if tuple(index.shape[1:]) != (grid.height, grid.width):
                raise ValueError(
                    f"got indices of {tuple(index.shape[1:])} places; this layout has {grid.height} × {grid.width}: "
                    "encode images of the size that the layout was made for"
                )
            if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < grid.codes):
                raise ValueError(
                    f"got the indices {int(index.min())} … {int(index.max())} for a codebook of {grid.codes} codes: "
                    "give the layout of this tokenizer"
                )
            parts.append(rearrange(index, "b h w -> b (h w)") + offset)
        return torch.cat(parts, 1)

    def unflatten(self, tokens: Tensor) -> list[Tensor]:
        """The indices of each grid; b n -> for each grid b h w. ValueError for a token that its place cannot hold."""
        if tokens.shape[1] != self.length:
            raise ValueError(f"got {tokens.shape[1]} tokens per image, and this layout has {self.length}")
        sizes = [grid.height * grid.width for grid in self.grids]
        indices = []
        for grid, offset, part in zip(self.grids, self.offsets, tokens.split(sizes, 1), strict=True):
            index = rearrange(part - offset, "b (h w) -> b h w", h=grid.height)
            if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < grid.codes):
                raise ValueError(
                    f"a token is no code of its level: got {int(part.min())} … {int(part.max())} where {offset} … "
                    f"{offset + grid.codes - 1} are allowed; sample with `allowed`"
                )
            indices.append(index)
        return indices

    def allowed(self) -> Tensor:
        """Which tokens each place may hold; n v bool."""
        tokens = torch.arange(self.vocabulary)
        rows = []
        for grid, offset in zip(self.grids, self.offsets, strict=True):
            inside = (tokens >= offset) & (tokens < offset + grid.codes)
            rows.append(inside.expand(grid.height * grid.width, -1))
        return torch.cat(rows)


@dataclass(frozen=True)
class CodeSequences:
    """The tokens of n images, and what the tokens stand for."""

    tokens: Tensor  #: n s, int64
    layout: TokenLayout
    vectors: Tensor  #: v c float32: the vector of each token's code
    fingerprint: str  #: of the tokenizer and the images
