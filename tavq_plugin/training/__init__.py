"""The reference trainer: one recipe, any method, any host; resumable, on accelerate."""

from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.trainer import Fitted, fit

__all__ = ["Fitted", "Recipe", "fit"]
