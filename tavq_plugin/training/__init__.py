"""The reference trainer: one recipe for any method and host. It runs on accelerate, and interrupted runs resume."""

from tavq_plugin.moved import old_names
from tavq_plugin.training.extension import extend
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.trainer import TrainedRun, fit

__all__ = ["Recipe", "TrainedRun", "extend", "fit"]
__getattr__ = old_names(__name__)  # names that were renamed
