"""The reference trainer: one recipe, any method, any host; resumable, on accelerate."""

from tavq_plugin.moved import old_names
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.trainer import TrainedRun, fit

__all__ = ["Recipe", "TrainedRun", "fit"]
__getattr__ = old_names(__name__)  # names that were renamed
