"""The host's codebook in a run: started on its latents once the host has settled, hardly used codes moved onto them."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.nn.utils import parametrize

from tavq_plugin.attach import Tokenizer
from tavq_plugin.methods.base import Corpus
from tavq_plugin.types import Codes, Level
from tavq_plugin.distributed import whole
from tavq_plugin.training.codebook_restarts import Revival
from tavq_plugin.training.recipe import Recipe


class KeptCodebook:
    """A `Revival` of the host's level, in step on all processes; its state is the revival's."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, accelerator: Accelerator, revival: Revival) -> None:
        self.start_settings, self.steps = recipe.start, recipe.steps
        self.adapter, self.accelerator, self.revival = tokenizer.adapter, accelerator, revival
        self.state_dict, self.load_state_dict = revival.state_dict, revival.load_state_dict

    @classmethod
    def of(cls, recipe: Recipe, tokenizer: Tokenizer, accelerator: Accelerator) -> KeptCodebook | None:
        """None where the recipe asks for nothing, or the method computes the codebook.

        Raises ValueError where the host's codebook cannot be written.
        """
        start = recipe.start
        if not (start.settle_share or start.revive_every):
            return None
        table = tokenizer.adapter.codebook()
        if any(parametrize.is_parametrized(module) for module in tokenizer.host.modules()):
            return None
        if table is None or not table.is_leaf or whole(table) is not table:
            raise ValueError(
                "this host's codebook is not a table that can be written: give start.settle_share=0 and "
                "start.revive_every=0"
            )
        return cls(recipe, tokenizer, accelerator, Revival(len(table), recipe.seed, below=start.revive_below))

    @torch.no_grad()
    def start(self, corpus: Corpus) -> None:
        """Put the codes on latents of the training images."""
        codebook = self.adapter.codebook()
        self.revival.start(codebook, self.adapter, corpus.images[: corpus.n_train])
        if self.accelerator.num_processes > 1:
            torch.distributed.broadcast(codebook.data, 0)

    def see(self, codes: Codes) -> None:
        """Count what the host's level chose in a pass."""
        if self.start_settings.revive_every:
            self.revival.see(self._everywhere(codes))

    def after_update(self, number: int, codes: Codes) -> None:
        """When it is time, move the codes that were hardly chosen onto latents of the latest pass."""
        every = self.start_settings.revive_every
        if every and number < self.start_settings.revive_share * self.steps and number % every == every - 1:
            self.revival.move(self.adapter.codebook(), self._everywhere(codes))

    def _everywhere(self, codes: Codes) -> Level:
        """The host's level of all processes' images, in the batch's order."""
        final = codes.final
        if self.accelerator.num_processes == 1:
            return final
        latent, indices = self.accelerator.gather((final.latent.detach(), final.indices))
        return Level(latent, latent, indices, final.loss)
