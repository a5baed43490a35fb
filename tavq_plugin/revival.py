"""Dead codes brought back: what hardly a latent chose for a while moves onto latents of the present batch."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from tavq_plugin.contract import Level


class Revival:
    """Counts the codes a level chooses and moves the hardly used ones (random restarts; Dhariwal et al. 2020).

    The latents are drawn by a generator of its own, so no other random stream moves.
    """

    def __init__(self, size: int, seed: int, *, below: float = 0.1) -> None:
        self.uses, self.below = torch.zeros(size), below
        self._draw = torch.Generator().manual_seed(seed)

    def see(self, level: Level) -> None:
        """Count the codes a level chose."""
        self.uses += torch.bincount(level.indices.flatten().cpu(), minlength=len(self.uses))

    @torch.no_grad()
    def move(self, codebook: Tensor, level: Level) -> int:
        """Put each code (k c) used less than `below` times the mean since the last move on a random latent.

        -> how many were moved: at most as many as the level has latents. Counting then begins anew.
        """
        dead = (self.uses < self.below * self.uses.mean()).nonzero()[:, 0]
        latents = rearrange(level.latent, "b c h w -> (b h w) c")
        dead = dead[: len(latents)]
        chosen = torch.randperm(len(latents), generator=self._draw)[: len(dead)]
        codebook[dead.to(codebook.device)] = latents[chosen.to(latents.device)].to(codebook.dtype)
        self.uses.zero_()
        return len(dead)
