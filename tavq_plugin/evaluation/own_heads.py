"""Retrieval through the heads that an alignment trained, and diagnostics of its transport, on held-out images."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tavq_plugin.evaluation.metrics.retrieval import recall
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.pixels import to_float


class OwnHeadResults(NamedTuple):
    """Lists have one value per level, fine → coarse."""

    retrieval: list[dict[str, float]]  # image→text recall, percent: {"r1": …, "r10": …, "r50": …}
    plan_entropy: list[float]
    marginal_error: list[float]


@torch.no_grad()
def own_head_retrieval(tokenizer: Tokenizer, align: TextAlignment, targets: TextTargets) -> OwnHeadResults:
    """Retrieval through the heads that the alignment trained, over the held-out images with text.

    A head that was trained with the loss flatters its own method: compare methods by `evaluate_run`.
    """
    corpus, size = targets.corpus, targets.settings.batch_size
    rows = corpus.held_out_rows
    tokenizer.eval()
    projected, diagnostics = [], []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        codes = tokenizer.encode(to_float(corpus.images[part.start : part.stop]))
        projected.append([align.embed(level.quantized, i).mean(1) for i, level in enumerate(codes.levels)])
        align(codes, corpus.store.batch(part))
        figures = [align.last[name] for name in ("plan_entropy", "marginal_error")]
        diagnostics.append(torch.stack(figures) * len(part))
    plan_entropy, marginal_error = (torch.stack(diagnostics).sum(0) / len(rows)).tolist()
    levels = zip(*projected, strict=True)
    sides = zip(map(torch.cat, levels), targets.held_out_means, targets.held_out_has_text, strict=True)
    retrieval = [recall(image[has].double(), text[has].double()) for image, text, has in sides]
    return OwnHeadResults(retrieval, plan_entropy, marginal_error)
