"""The host's codebook in a run: it starts on latents, and hardly used codes move onto those of the batch."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor
from torch.nn.utils import parametrize

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.distributed import gather_sharded
from tavq_plugin.hosts.hooks import tapped
from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.pixels import to_float
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.types import Codes, Level


def latents_of(adapter: Adapter, images: Tensor) -> Tensor:
    """What a host's encoder gives its quantizer; b 3 h w -> b c h w."""
    with tapped(adapter.model, at=[adapter.quantizer]) as recorder:
        adapter.encode(images)
    return recorder.take()[adapter.quantizer].z_in


class CodebookRestarts:
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


class HostCodebookRestarts:
    """A `CodebookRestarts` of the host's level, in step on all processes; its state is the restarts'."""

    def __init__(
        self, recipe: Recipe, tokenizer: Tokenizer, accelerator: Accelerator, restarts: CodebookRestarts
    ) -> None:
        self.start_settings, self.steps = recipe.start, recipe.steps
        self.adapter, self.accelerator, self.restarts = tokenizer.adapter, accelerator, restarts
        self.state_dict, self.load_state_dict = restarts.state_dict, restarts.load_state_dict

    @classmethod
    def of(cls, recipe: Recipe, tokenizer: Tokenizer, accelerator: Accelerator) -> HostCodebookRestarts | None:
        """None where the recipe asks for nothing, or the method computes the codebook.

        Raises ValueError where the host's codebook cannot be written.
        """
        start = recipe.start
        if not (start.settle_share or start.revive_every):
            return None
        table = tokenizer.adapter.codebook()
        if any(parametrize.is_parametrized(module) for module in tokenizer.host.modules()):
            return None
        if table is None or not table.is_leaf or gather_sharded(table) is not table:
            raise ValueError(
                "this host's codebook is not a table that can be written: give start.settle_share=0 and "
                "start.revive_every=0"
            )
        return cls(recipe, tokenizer, accelerator, CodebookRestarts(len(table), recipe.seed, below=start.revive_below))

    @torch.no_grad()
    def start(self, corpus: Corpus) -> None:
        """Put the codes on latents of the training images."""
        codebook = self.adapter.codebook()
        self.restarts.start(codebook, self.adapter, corpus.images[: corpus.n_train])
        if self.accelerator.num_processes > 1:
            torch.distributed.broadcast(codebook.data, 0)

    def see(self, codes: Codes) -> None:
        """Count what the host's level chose in a pass."""
        if self.start_settings.revive_every:
            self.restarts.see(self._everywhere(codes))

    def after_update(self, number: int, codes: Codes) -> None:
        """When it is time, move the codes that were hardly chosen onto latents of the latest pass."""
        every = self.start_settings.revive_every
        if every and number < self.start_settings.revive_share * self.steps and number % every == every - 1:
            self.restarts.move(self.adapter.codebook(), self._everywhere(codes))

    def _everywhere(self, codes: Codes) -> Level:
        """The host's level of all processes' images, in the batch's order."""
        final = codes.final
        if self.accelerator.num_processes == 1:
            return final
        latent, indices = self.accelerator.gather((final.latent.detach(), final.indices))
        return Level(latent, latent, indices, final.loss)
