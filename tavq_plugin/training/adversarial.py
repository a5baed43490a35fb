"""PatchGAN discriminator and hinge losses (VQGAN, arXiv 2012.09841, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.distributed import load_module, load_optimizer
from tavq_plugin.training.recipe import AdversarialRecipe

SLOPE = 0.2
LARGEST_WEIGHT = 1e4  # upper bound of the adaptive weight


class PatchGAN(nn.Module):
    """The patch discriminator: strided 4 × 4 convolutions (Isola et al. 2017); b 3 h w -> b 1 h' w'.

    Our choice: group normalisation instead of batch normalisation. An image's logits then do not depend on the rest of
    the batch, so splitting a batch over passes or processes changes nothing.
    """

    def __init__(self, *, layers: int = 3, width: int = 64) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for i, (a, b) in enumerate(pairwise(widths)):
            stride = 1 if i == layers - 1 else 2
            norm = nn.GroupNorm(min(8, b), b)
            parts += [nn.Conv2d(a, b, 4, stride, 1, bias=False), norm, nn.LeakyReLU(SLOPE)]
        self.judge = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """One logit per patch; a high logit means that the patch looks real."""
        return self.judge(images)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on its logits: ½(E[1 − real]₊ + E[1 + fake]₊); -> scalar.

    >>> hinge(torch.tensor([2.0]), torch.tensor([-0.5]))
    tensor(0.2500)
    """
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(own: Tensor, generator: Tensor, last_layer: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """λ = ‖∇own‖ / (‖∇generator‖ + 1e-4) at the decoder's last layer (VQGAN, eq. 7), at most 1e4; -> scalar.

    `mean` averages a gradient over the processes.
    """
    norms = [mean(torch.autograd.grad(loss, last_layer, retain_graph=True)[0]).norm() for loss in (own, generator)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, LARGEST_WEIGHT).detach()


class Adversary:
    """The discriminator in a run: its term in the generator's loss, its own loss and its optimizer.

    It learns from the reconstructions of the generator's pass, so the host and the method run once per step.
    """

    def __init__(
        self,
        recipe: AdversarialRecipe,
        module: nn.Module,
        prepared: nn.Module,
        optimizer: torch.optim.Optimizer,
        mean: Callable[[Tensor], Tensor],
    ) -> None:
        self.recipe, self.module, self.prepared, self.optimizer, self.mean = recipe, module, prepared, optimizer, mean

    def is_active(self, number: int) -> bool:
        """Whether the discriminator takes part after `number` optimizer steps."""
        return number >= self.recipe.start

    def generator_term(self, reconstruction: Tensor, own: Tensor, last_layer: Tensor | None) -> tuple[Tensor, Tensor]:
        """The generator's weighted term and its adaptive factor; the discriminator gets no gradient from it.

        `own` is the sum of the generator's other losses on these pixels. `last_layer` may be None only if the recipe
        says adaptive=False.
        """
        self.module.requires_grad_(False)
        try:
            loss = -self.module(reconstruction).float().mean()
        finally:
            self.module.requires_grad_(True)
        factor = loss.new_ones(())
        if self.recipe.adaptive:
            assert last_layer is not None  # checked when the run is built
            factor = adaptive_weight(own, loss, last_layer, self.mean)
        return self.recipe.weight * factor * loss, factor

    def discriminator_loss(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """The discriminator's hinge loss on images and their reconstructions, b 3 h w each; -> scalar."""
        real, fake = self.prepared(torch.cat([images, reconstruction.detach()])).float().chunk(2)
        return hinge(real, fake)

    def update(self) -> None:
        """One optimizer step of the discriminator."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the discriminator and its optimizer."""
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        load_module(self.module, state["module"])
        load_optimizer(self.optimizer, state["optimizer"])
