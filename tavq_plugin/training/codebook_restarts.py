"""Restarts of the host's codebook: codes start on latents, and hardly used codes move onto latents of a batch."""

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
from tavq_plugin.methods import method_class
from tavq_plugin.pixels import to_float
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.schedule import Phase
from tavq_plugin.types import Codes, Level


def encode_latents(adapter: Adapter, images: Tensor) -> Tensor:
    """The latents that a host's encoder passes to its quantizer; b 3 h w -> b c h w."""
    with tapped(adapter.model, at=[adapter.quantizer]) as recorder:
        adapter.encode(images)
    return recorder.take()[adapter.quantizer].z_in


@torch.no_grad()
def draw_latents(adapter: Adapter, images: Tensor, draw: torch.Generator, device: torch.device) -> Tensor:
    """The latents of 256 of the images (n 3 r r uint8), drawn at random; -> n c."""
    drawn = images[torch.randperm(len(images), generator=draw)[:256]]
    parts = [encode_latents(adapter, to_float(part).to(device)) for part in drawn.split(32)]
    return rearrange(torch.cat(parts), "b c h w -> (b h w) c")


def count_codes(indices: Tensor, size: int) -> Tensor:
    """How often each of `size` codes was chosen; any shape int64 -> size int64.

    Unlike `torch.bincount`, it does not make a GPU wait to learn the largest index.

    >>> count_codes(torch.tensor([[0, 2], [2, 2]]), 4)
    tensor([1, 0, 3, 0])
    """
    flat = indices.flatten()
    return torch.zeros(size, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))


class CodebookRestarts:
    """Count how often a level chooses each code and move the hardly used ones (random restarts; Dhariwal et al. 2020).

    Latents are drawn from a separate random generator, so no other random stream advances. The counts are on the
    codebook's device, and nothing waits for it.
    """

    def __init__(self, size: int, seed: int, *, below: float = 0.1, device: torch.device | None = None) -> None:
        self.uses, self.below = torch.zeros(size, device=device), below
        self._draw = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def start(self, codebook: Tensor, adapter: Adapter, images: Tensor) -> None:
        """Put the codes (k c) on latents of 256 of the images (n 3 r r uint8), drawn at random.

        Does nothing if there are fewer latents than codes.
        """
        latents = draw_latents(adapter, images, self._draw, codebook.device)
        if len(latents) >= len(codebook):
            chosen = torch.randperm(len(latents), generator=self._draw)[: len(codebook)]
            codebook.copy_(latents[chosen.to(latents.device)])

    def count(self, level: Level) -> None:
        """Count the codes that a level chose."""
        self.uses += count_codes(level.indices, len(self.uses))

    @torch.no_grad()
    def restart_dead_codes(self, codebook: Tensor, level: Level) -> Tensor:
        """Put each code (k c) that was used less than `below` times the mean on a random latent of the level.

        Returns how many codes moved, at most one per latent; scalar int64. Counting then starts again from 0.
        """
        latents = rearrange(level.latent, "b c h w -> (b h w) c")
        chosen = torch.randperm(len(latents), generator=self._draw).to(latents.device, non_blocking=True)
        dead = self.uses < self.below * self.uses.mean()
        place = dead.cumsum(0) - 1  # of a dead code among the dead
        moves = dead & (place < len(latents))
        target = latents[chosen[place.clamp(0, len(latents) - 1)]].to(codebook.dtype)
        codebook.copy_(torch.where(moves[:, None], target, codebook))
        self.uses.zero_()
        return moves.sum()

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs: the counts and the random generator."""
        return {"uses": self.uses, "draw": self._draw.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.uses.copy_(state["uses"])
        self._draw.set_state(state["draw"])


class HostCodebookRestarts:
    """`CodebookRestarts` for the host's own codebook, identical on all processes."""

    def __init__(
        self, recipe: Recipe, tokenizer: Tokenizer, accelerator: Accelerator, restarts: CodebookRestarts, phase: Phase
    ) -> None:
        self.start_settings, self.phase = recipe.start, phase
        self.adapter, self.accelerator, self.restarts = tokenizer.adapter, accelerator, restarts
        self.state_dict, self.load_state_dict = restarts.state_dict, restarts.load_state_dict

    @classmethod
    def from_recipe(
        cls, recipe: Recipe, tokenizer: Tokenizer, accelerator: Accelerator, phase: Phase
    ) -> HostCodebookRestarts | None:
        """The recipe's restarts; None if it asks for none, or if the method computes or moves the codebook itself.

        Raises ValueError if the host's codebook cannot be written to.
        """
        start = recipe.start
        if not ((start.settle_share and not recipe.init) or start.revive_every):
            return None
        table = tokenizer.adapter.codebook()
        takes_restarts = method_class(recipe.method).takes_restarts(recipe.options)
        if not takes_restarts or any(parametrize.is_parametrized(module) for module in tokenizer.host.modules()):
            return None
        if table is None or not table.is_leaf or gather_sharded(table) is not table:
            raise ValueError(
                "this host's codebook is not a table that can be written: give start.settle_share=0 and "
                "start.revive_every=0"
            )
        restarts = CodebookRestarts(len(table), recipe.seed, below=start.revive_below, device=table.device)
        return cls(recipe, tokenizer, accelerator, restarts, phase)

    @torch.no_grad()
    def start(self, corpus: Corpus) -> None:
        """Put the codes on latents of the training images."""
        codebook = self._codebook()
        self.restarts.start(codebook, self.adapter, corpus.images[: corpus.n_train])
        if self.accelerator.num_processes > 1:
            torch.distributed.broadcast(codebook.data, 0)

    def count(self, codes: Codes) -> None:
        """Count the codes that the host's level chose in a pass."""
        if self.start_settings.revive_every:
            self.restarts.count(self._gathered(codes))

    def after_update(self, number: int, codes: Codes) -> None:
        """Every `revive_every` steps, move the hardly used codes onto latents of the latest pass."""
        every, done = self.start_settings.revive_every, number - self.phase.first
        if every and done < self.start_settings.revive_share * self.phase.steps and done % every == every - 1:
            self.restarts.restart_dead_codes(self._codebook(), self._gathered(codes))

    def _codebook(self) -> Tensor:
        codebook = self.adapter.codebook()
        assert codebook is not None  # `from_recipe` refuses such a host
        return codebook

    def _gathered(self, codes: Codes) -> Level:
        """The host's level over the images of all processes, in batch order."""
        final = codes.final
        if self.accelerator.num_processes == 1:
            return final
        latent, indices = self.accelerator.gather((final.latent.detach(), final.indices))
        return Level(latent, latent, indices, final.loss)
