"""A corpus of eight captioned images and one step on a tiny host, for the methods' tests."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from helpers.tiny_encoders import save_tiny_bert
from helpers.tiny_hosts import tiny

import tavq_plugin as tavq
from tavq_plugin.data.corpus import Corpus
from tavq_plugin.methods import method_class
from tavq_plugin.methods.base import Method, Step, texts_of
from tavq_plugin.pixels import to_float
from tavq_plugin.text import TextEncoder, TextStore
from tavq_plugin.types import TextBatch, Units

TEXTS = [
    "A red car runs. The blue dog sleeps in a house.",
    "A red dog runs in the blue sky.",
    "Two men sleep. A blue car, a red car.",
    "",
    "The red house. A long boat on the blue sky.",
    "A cat sleeps on a red boat.",
    "A blue cat.",
    "Two red dogs run.",
]
HOSTS = ("taming-vq", "diffusers", "lucidrains-vq-learnt")
OWN = {"vqct": {"threshold": 0}}  # settings for so few words


@cache
def corpus() -> Corpus:
    """Six images that train, one of them without text, and two held out."""
    images = torch.randint(256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        encoder = TextEncoder.from_pretrained(save_tiny_bert(Path(folder)))
    store = TextStore.build(TEXTS, encoder, centre_on=range(6))
    return Corpus("small", images, TEXTS, store, 6)


def made(name: str, host: str = "taming-vq", *, seed: int = 0, **settings) -> tuple[tavq.Tokenizer, Method]:
    """A wrapped tiny host and a method on it, the host and its added levels always the same."""
    torch.manual_seed(1)
    tokenizer = tavq.wrap(tiny(host))
    stream = torch.get_rng_state()
    built = method_class(name)(tokenizer, corpus(), seed=seed, **OWN.get(name, {}) | settings)
    assert torch.equal(stream, torch.get_rng_state())
    return tokenizer, built


def step_of(tokenizer: tavq.Tokenizer, rows=(0, 1, 2), *, number: int = 3, texts: TextBatch | None = None) -> Step:
    """A generator pass on some rows."""
    rows = torch.tensor(rows)
    images = to_float(corpus().images[rows])
    output, codes = tokenizer(images)
    reconstruction = output.sample if hasattr(output, "sample") else output[0]
    texts = texts_of(corpus(), rows, images.device) if texts is None else texts
    return Step(number, 10, rows, images, reconstruction, codes, texts)


def silent(texts: TextBatch) -> TextBatch:
    """The same batch without any text, with garbage under the masks."""
    return {name: Units(torch.full_like(u.embeddings, 1e3), torch.zeros_like(u.mask)) for name, u in texts.items()}


def widened(texts: TextBatch) -> TextBatch:
    """The same texts, padded further with garbage."""
    return {
        name: Units(F.pad(u.embeddings, (0, 0, 0, 3), value=1e3), F.pad(u.mask, (0, 3))) for name, u in texts.items()
    }
