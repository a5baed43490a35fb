"""The numbers of level 3 in `tavq demo`, and the same numbers of two floors: features that nobody trained."""

from __future__ import annotations

from typing import Any

import torch

from tavq_plugin.cli.demo_table import STORED_METRICS
from tavq_plugin.evaluation.encoded_images import codebook_sizes
from tavq_plugin.evaluation.evaluate import score_codes
from tavq_plugin.evaluation.floors.features import floors
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.results import RunResults
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.pixels import to_float

SHOWN = {"mean-colour": "mean colour", "patch-kmeans": "patch k-means"}  # floor → its column


def stored_codes(results: RunResults) -> dict[str, Any]:
    """The numbers of level 3, the codes that a user stores; None where there is no value."""
    values, psnr = results.values, results.per_image["psnr"]
    return {
        "stored": {metric: values.get(f"{metric}_3") for metric in STORED_METRICS},
        "chance": {metric: results.chance.get(f"{metric}_3", [None])[0] for metric in STORED_METRICS},
        "psnr": values["psnr"],
        "psnr_standard_error": (psnr.std() / len(psnr) ** 0.5).item(),
        "bits": values.get("bits_3"),
        "usage": values.get("usage"),
        "perplexity": values.get("perplexity"),
    }


@torch.no_grad()
def demo_floors(tokenizer: Tokenizer, targets: TextTargets, judges: Judges, *, seed: int) -> dict[str, dict[str, Any]]:
    """The numbers of each floor that the demo shows, with as many codes and places as the tokenizer's level 3."""
    corpus = targets.corpus
    train, held_out = corpus.images[: len(targets.probe_rows)], corpus.images[corpus.n_train :]
    indices = tokenizer.encode(to_float(train[:1])).final.indices
    found = {}
    size = codebook_sizes(tokenizer, int(indices.max()))[-1]
    for floor in floors(
        train, held_out, codes=size, grid=indices.shape[-1], seed=seed, transport_images=targets.transport_images,
        untrained=None, weights=None, tell=lambda name, why: None, ceilings={},
    ):  # fmt: skip
        if floor.name in SHOWN:
            results = score_codes(floor.train, floor.held_out, [floor.codes], targets, judges)
            found[SHOWN[floor.name]] = stored_codes(results)
    return found
