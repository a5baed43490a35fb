"""Methods to train a VQ tokenizer, one per file; each is looked up by name and imported on demand."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tavq_plugin.methods.base import Method

_HERE = "tavq_plugin.methods"
METHODS = {
    "vqvae": f"{_HERE}.vqvae:VQVAEMethod",
    "vqgan": f"{_HERE}.vqgan:VQGANMethod",
    "cvq": f"{_HERE}.cvq:CVQMethod",
    "lgvq": f"{_HERE}.lgvq:LGVQ",
    "vqct": f"{_HERE}.vqct:VQCT",
    "tavq": f"{_HERE}.tavq:TAVQ",
    "tavq-weighted-sum": f"{_HERE}.tavq_weighted_sum:TAVQWeightedSum",
    "tavq-paper": f"{_HERE}.tavq_paper:TAVQPaper",
    "tavq-shuffled": f"{_HERE}.tavq_shuffled:TAVQShuffled",
    "tavq-uniform-plan": f"{_HERE}.tavq_uniform_plan:TAVQUniformPlan",
    "l2-distil": f"{_HERE}.l2_distil:L2Distil",
    "infonce": f"{_HERE}.infonce:InfoNCE",
}


def method_class(name: str) -> type[Method]:
    """A method's class by its name; raises KeyError, which lists the known names.

    >>> method_class("vqvae").adversarial
    False
    """
    if name not in METHODS:
        raise KeyError(f"no method {name!r}: one of {', '.join(METHODS)}")
    source, cls = METHODS[name].split(":")
    return getattr(import_module(source), cls)
