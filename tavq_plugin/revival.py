"""Dead codes brought back: what no latent chose for a while moves onto latents of the present batch."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from tavq_plugin.contract import Level


class Revival:
    """Counts the codes a level chooses and moves the unused ones (as Jukebox's random restarts; Dhariwal et al. 2020).

    The latents are drawn by a generator of its own, so no other random stream moves.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.used = torch.zeros(size, dtype=torch.bool)
        self._draw = torch.Generator().manual_seed(seed)

    def see(self, level: Level) -> None:
        """Remember which codes a level chose."""
        self.used[level.indices.flatten().cpu()] = True

    @torch.no_grad()
    def move(self, codebook: Tensor, level: Level) -> int:
        """Put each code (k c) unused since the last move on a random latent of the level; -> how many were moved.

        At most as many as there are latents; counting then begins anew.
        """
        dead = (~self.used).nonzero()[:, 0]
        latents = rearrange(level.latent, "b c h w -> (b h w) c")
        dead = dead[: len(latents)]
        chosen = torch.randperm(len(latents), generator=self._draw)[: len(dead)]
        codebook[dead.to(codebook.device)] = latents[chosen.to(latents.device)].to(codebook.dtype)
        self.used.zero_()
        return len(dead)
