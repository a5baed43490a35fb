"""Alignment of codes with text: the transport solver, the measures it takes, and the loss."""

from tavq_plugin.align.distribution import CodeDistribution, GaussianCodes, coarse, collapse_repeats, stratified
from tavq_plugin.align.loss import TextAlignment
from tavq_plugin.align.transport import Transport, solve

__all__ = [
    "CodeDistribution",
    "GaussianCodes",
    "TextAlignment",
    "Transport",
    "coarse",
    "collapse_repeats",
    "solve",
    "stratified",
]
