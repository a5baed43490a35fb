"""The numbers of level 3 in `tavq demo` for two floors: features that nobody trained."""

from __future__ import annotations

from typing import Any

import torch

from tavq_plugin.cli.demo_metrics import stored_codes
from tavq_plugin.evaluation.encoded_images import codebook_sizes
from tavq_plugin.evaluation.evaluate import score_codes
from tavq_plugin.evaluation.floors.features import floors
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.pixels import to_float

SHOWN = {"mean-colour": "mean colour", "patch-kmeans": "patch k-means"}  # floor → its column


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
