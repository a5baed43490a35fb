"""VQCT's own quantizer: at each place two adjectives for half of the channels, and a noun for the other half."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.hosts.registry import known_quantizers
from tavq_plugin.types import Quantized


class PartOfSpeechQuantizer(nn.Module):
    """Latents -> vectors, loss and the three codes of each place; b c h w -> (b c h w, scalar, (_, b c h w, b h w 3)).

    The first half of the channels is the mean of the two nearest adjectives, the second half the nearest noun. The
    first `adjectives` rows of the codebook are adjectives, and of each row only its own half is used.
    """

    adjectives: Tensor  # scalar int64

    def __init__(self, codes: int, width: int, *, beta: float, legacy: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)
        self.register_buffer("adjectives", torch.tensor(codes // 2))
        self.beta, self.legacy = beta, legacy

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, Tensor, Tensor]]:
        """Straight-through vectors, the codebook's and commitment losses of both halves, raw vectors and codes."""
        table, half, adjectives = self.embedding.weight, z.shape[1] // 2, int(self.adjectives)
        flat = rearrange(z, "b c h w -> (b h w) c")
        with torch.no_grad():
            two = torch.cdist(flat[:, :half], table[:adjectives, :half]).topk(2, 1, largest=False).indices
            noun = adjectives + torch.cdist(flat[:, half:], table[adjectives:, half:]).argmin(1, keepdim=True)
        parts = (table[two][..., :half].mean(1), table[noun[:, 0], half:])
        b, _, h, _ = z.shape
        vectors = rearrange(torch.cat(parts, 1), "(b h w) c -> b c h w", b=b, h=h)
        commit, learn = (vectors.detach() - z).square().mean(), (vectors - z.detach()).square().mean()
        loss = 2 * (commit + self.beta * learn if self.legacy else self.beta * commit + learn)  # means of both halves
        codes = rearrange(torch.cat([two, noun], 1), "(b h w) k -> b h w k", b=b, h=h)
        return z + (vectors - z).detach(), loss, (None, vectors, codes)


def read_three_codes(z_in: Tensor, output: Any) -> Quantized:
    """The quantizer's output as `Quantized`; its indices are the nouns, the vectors are those of all three codes."""
    vectors, loss, (_, looked_up, codes) = output
    return Quantized(vectors, codes[..., 2], loss, looked_up=looked_up)


def put_in_host(host: nn.Module) -> dict[str, Any]:
    """Put the quantizer in the place of a host's own, which must have an `embedding`; returns arguments of `wrap`."""
    paths = known_quantizers(host)
    old: Any = host.get_submodule(paths[0]) if len(paths) == 1 else None
    table = getattr(old, "embedding", None)
    if not isinstance(table, nn.Embedding) or table.embedding_dim % 2 or not hasattr(old, "beta"):
        raise ValueError(
            f"codes_per_place=3 replaces a quantizer like taming's, with an embedding of even width and a beta, and "
            f"{type(host).__name__} has none: leave codes_per_place out"
        )
    legacy = bool(getattr(old, "legacy", False))
    new = PartOfSpeechQuantizer(table.num_embeddings, table.embedding_dim, beta=old.beta, legacy=legacy)
    parent, _, name = paths[0].rpartition(".")
    setattr(host.get_submodule(parent), name, new.to(table.weight.device))
    return {"quantizer": paths[0], "parse": read_three_codes}
