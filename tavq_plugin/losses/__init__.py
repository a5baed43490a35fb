"""Losses that align codes with text: `TextAlignment`, and the measures of codes that it transports from."""

from tavq_plugin.losses.code_distribution import CodeDistribution, GaussianCodes, coarse, collapse_repeats, stratified
from tavq_plugin.losses.text_alignment import TextAlignment

__all__ = ["CodeDistribution", "GaussianCodes", "TextAlignment", "coarse", "collapse_repeats", "stratified"]
