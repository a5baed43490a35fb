"""The protocol of `tavq demo`: what its numbers depend on; runs that were finished under the same are kept."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from tavq_plugin.cli.demo_settings import DemoSettings
from tavq_plugin.data.corpus import Corpus
from tavq_plugin.text.encoder import TextEncoder

PROBE_ROWS = 1000  # probes are fitted on at most this many training images: with more, they would take a minute
PACKAGES = ("tavq-plugin", "torch", "accelerate", "transformers", "taming-transformers-rom1504", "torchmetrics")


def probe_rows(corpus: Corpus) -> int:
    """Number of training images that the probes are fitted on."""
    return max(2, min(PROBE_ROWS, corpus.n_train))


def demo_protocol(settings: DemoSettings, corpus: Corpus, encoder: TextEncoder) -> dict[str, Any]:
    """The settings of the runs, what their numbers mean, and what they were made with."""
    recipe = settings.recipe
    names = ("steps", "batch_size", "codebook_loss_weight", "seed", "resolution")
    held_out = len(corpus.held_out_rows)
    return {
        "host": settings.host,
        "starts_from": "a checkpoint" if recipe.init else "scratch",
        **settings.checkpoint,
        **{name: getattr(recipe, name) for name in names},
        **{name: getattr(recipe.optimizer, name) for name in ("learning_rate", "warmup")},
        **asdict(recipe.start),
        "beta2": recipe.optimizer.betas[1],
        "head_rate": recipe.optimizer.method_rate,
        "data": corpus.name,
        **settings.read.fields_named(),
        "n_train": corpus.n_train,
        "split": corpus.split,
        "n_eval": held_out,
        "alignment": settings.alignment,
        "encoder": encoder.fingerprint,
        "stored": "level 3; grid_*: ridge on the code vectors of every place, averaged to at most 8 × 8 places",
        "probe": "ridge on standardised mean-pooled quantized codes, penalty by leave-one-out error, fitted on the "
        f"first {probe_rows(corpus)} training rows",
        "retrieval": "image→text among the held-out pairs, percent; mean unit embedding, both sides centred",
        "word_map": "mean average precision over the 100 most frequent words of the training texts, percent",
        "word_mass": "of words that stand in the phrase of exactly one box: the share of a word's transport at level 1 "
        "inside that box, and the box's share of the places, mean over the words of the held-out images, percent",
        "psnr": "dB, mean over the held-out images, clamped and rounded to 8 bit; of the level that the decoder reads",
        "spread": "one seed per call: give --seed 0, 1, 2 for a spread over seeds; psnr_standard_error and the "
        "intervals of the verdict are over images",
        "chance": {f"r{k}": min(100.0, 100 * k / held_out) for k in (1, 10, 50)},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in PACKAGES},
    }
