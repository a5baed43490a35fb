"""Texts as prompts of a masked model: the units of each text, through a linear map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tavq_plugin.io.atomic import read_json, save_json
from tavq_plugin.io.ownership import claim
from tavq_plugin.tasks.fit_model import MAKER
from tavq_plugin.tasks.masked_model import Prompt
from tavq_plugin.text.encoder import TextEncoder
from tavq_plugin.text.store import TextStore
from tavq_plugin.types import TextBatch

READ = ("phrase", "sentence")  # their words are in them, and a prefix without single words is about half as long
STORE, ABOUT = "texts.safetensors", "texts.json"


class TextCondition(nn.Module):
    """Makes a prefix of the phrases and sentences of texts, one vector for each; TextBatch -> Prompt.

    A row of its own tells phrases and sentences apart. A text without units has an empty prefix.
    """

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(text_width, width)
        self.kind = nn.Parameter(0.02 * torch.randn(len(READ), width))

    def forward(self, texts: TextBatch) -> Prompt:
        """Granularity → b m d, padded -> a prefix of b (m₁ + m₂) d."""
        device = self.kind.device
        parts, masks = [], []
        for kind, granularity in zip(self.kind, READ, strict=True):
            units = texts[granularity].to(device)
            scaled = units.embeddings * units.embeddings.shape[-1] ** 0.5  # of length 1 before; now entries of about 1
            parts.append(self.project(scaled) + kind)
            masks.append(units.mask)
        return Prompt(torch.cat(parts, 1), torch.cat(masks, 1))


def prompt_store(prompts: Sequence[str], encoder: TextEncoder, like: TextStore) -> TextStore:
    """The units of a user's prompts, centred as those of the training texts.

    Raises ValueError for a prompt without units, or an encoder other than the training texts'.
    """
    store = TextStore.build(prompts, encoder).with_mean_of(like)
    has_units = torch.stack([store.lists[kind].offsets.diff() > 0 for kind in READ]).any(0)
    for prompt, known in zip(prompts, has_units.tolist(), strict=True):
        if not known:
            raise ValueError(f"the prompt {prompt!r} has no unit: give words that say what the image shows")
    return store


def caption_store(captions: Sequence[str], encoder: TextEncoder, folder: Path, *, n_train: int) -> TextStore:
    """The units of captions, training images first; encoded once and kept in `folder`.

    They are centred on the training captions. Raises FileExistsError if a file that we did not write is in the way.
    """
    digest = hashlib.sha256(json.dumps([list(captions), n_train]).encode()).hexdigest()
    asked = {"captions": digest, "encoder": encoder.fingerprint}
    if read_json(folder / ABOUT, strict=False) == asked and (folder / STORE).is_file():
        return TextStore.load(folder / STORE)
    claim(folder, (STORE, ABOUT), MAKER)
    (folder / ABOUT).unlink(missing_ok=True)
    store = TextStore.build(captions, encoder, centre_on=range(n_train), progress=False)
    store.save(folder / STORE)
    save_json(folder / ABOUT, asked)
    return store


def without_units(store: TextStore, rows: Tensor) -> Tensor:
    """Which texts have no unit at all; b bool."""
    counts = torch.stack([store.lists[kind].offsets.diff()[rows] for kind in READ])
    return counts.sum(0) == 0
