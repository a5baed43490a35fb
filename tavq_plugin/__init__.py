"""tavq-plugin: a codebook that speaks language, for any existing VQ image tokenizer (TA-VQ, arXiv 2503.01261)."""

from tavq_plugin import moved
from tavq_plugin.attach import Attachment, attach, detach
from tavq_plugin.hosts.tokenizer import Tokenizer, wrap
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.types import Codes, Level, Quantized, Units

moved.install()

__all__ = [
    "Attachment",
    "Codes",
    "Level",
    "Quantized",
    "TextAlignment",
    "Tokenizer",
    "Units",
    "attach",
    "detach",
    "wrap",
]
