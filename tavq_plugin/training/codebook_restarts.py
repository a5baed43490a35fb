"""A codebook kept on the latents: started on them, and hardly used codes moved onto those of the present batch."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from tavq_plugin.types import Adapter, Level
from tavq_plugin.data.images import to_float
from tavq_plugin.hosts.hooks import tapped


def latents_of(adapter: Adapter, images: Tensor) -> Tensor:
    """What a host's encoder gives its quantizer; b 3 h w -> b c h w."""
    with tapped(adapter.model, at=[adapter.quantizer]) as recorder:
        adapter.encode(images)
    return recorder.take()[adapter.quantizer].z_in


class Revival:
    """Counts the codes a level chooses and moves the hardly used ones (random restarts; Dhariwal et al. 2020).

    The latents are drawn by a generator of its own, so no other random stream moves.
    """

    def __init__(self, size: int, seed: int, *, below: float = 0.1) -> None:
        self.uses, self.below = torch.zeros(size), below
        self._draw = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def start(self, codebook: Tensor, adapter: Adapter, images: Tensor) -> None:
        """Put the codes (k c) on latents of 256 of the images (n 3 r r uint8), drawn at random.

        Left as it is where there are fewer latents than codes.
        """
        drawn = images[torch.randperm(len(images), generator=self._draw)[:256]]
        parts = [latents_of(adapter, to_float(part).to(codebook.device)) for part in drawn.split(32)]
        latents = rearrange(torch.cat(parts), "b c h w -> (b h w) c")
        if len(latents) >= len(codebook):
            chosen = torch.randperm(len(latents), generator=self._draw)[: len(codebook)]
            codebook.copy_(latents[chosen.to(latents.device)])

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

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs: the counts and the generator."""
        return {"uses": self.uses, "draw": self._draw.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        self.uses.copy_(state["uses"])
        self._draw.set_state(state["draw"])
