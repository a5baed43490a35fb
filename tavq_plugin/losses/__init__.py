"""Losses that align codes with text: `TextAlignment`, and the distributions of codes that it can use."""

from tavq_plugin.losses.code_distribution import CodeDistribution, GaussianCodes, coarse, stratified
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.losses.unique_codes import merge_repeated_codes

__all__ = ["CodeDistribution", "GaussianCodes", "TextAlignment", "coarse", "merge_repeated_codes", "stratified"]
