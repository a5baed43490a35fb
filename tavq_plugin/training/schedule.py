"""The steps that one schedule covers, and the learning rate in them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tavq_plugin.training.recipe import OptimizerRecipe, Recipe


@dataclass(frozen=True)
class Phase:
    """The optimizer steps that one schedule covers: a whole run, or an extension of a finished one."""

    first: int  # optimizer steps of the run before it
    last: int  # optimizer steps of the run after it
    first_coded: int  # number of its first step with codes; the steps before it do not quantize

    @classmethod
    def whole(cls, recipe: Recipe) -> Phase:
        """All steps of a recipe."""
        return cls(0, recipe.steps, recipe.settled)

    @classmethod
    def extension(cls, first: int, last: int) -> Phase:
        """Steps after the end of a run; a trained host is quantized from the first one on."""
        return cls(first, last, first)

    @property
    def steps(self) -> int:
        """Number of its optimizer steps."""
        return self.last - self.first

    @property
    def settles(self) -> bool:
        """Whether it begins with steps that do not quantize."""
        return self.first_coded > self.first

    def learning_rate(self, settings: OptimizerRecipe, number: int) -> float:
        """The rate of step `number`: a linear rise, then half a cosine down to 0, or constant.

        >>> Phase(10, 20, 10).learning_rate(OptimizerRecipe(learning_rate=1.0, warmup=0), 15)
        0.5
        """
        done = number - self.first
        rate = settings.learning_rate * min(1.0, (done + 1) / max(1, settings.warmup))
        if settings.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * done / self.steps))
        return rate
