"""What a run's codes are worth on held-out images: reconstruction, codebook use, and text through the codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import reduce
from torch import Tensor

from tavq_plugin.evaluation.metrics.codebook import codebook_use
from tavq_plugin.evaluation.metrics.image import psnr
from tavq_plugin.evaluation.metrics.retrieval import mean_average_precision, recall
from tavq_plugin.evaluation.metrics.words import frequent_words, presence
from tavq_plugin.evaluation.probes import fit_ridge
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.pixels import to_float
from tavq_plugin.text.store import TextStore
from tavq_plugin.types import GRANULARITIES, TextBatch


class Encoded(NamedTuple):
    """A set of images through a tokenizer."""

    pooled: list[Tensor]  # per level n c: quantized codes, averaged over the grid
    projected: list[Tensor] | None  # per level n d: the same through the trained heads
    indices: Tensor  # n h w, the host's own level
    psnr: Tensor | None  # n, dB
    transport: dict[str, list[float]] | None  # per level: plan_entropy, marginal_error


class TextTargets(NamedTuple):
    """The text side of the probes, the same for every run."""

    train: list[Tensor]  # per granularity n d: mean unit embedding
    held_out: list[Tensor]
    train_words: Tensor  # n w bool, which of the frequent words a text has
    held_out_words: Tensor


@torch.no_grad()
def encode(
    tokenizer: Tokenizer,
    images: Tensor,
    *,
    align: TextAlignment | None = None,
    texts: Sequence[TextBatch] | None = None,
    reconstruct: bool = False,
    batch_size: int = 50,
) -> Encoded:
    """Run images (n 3 r r uint8) through a tokenizer in eval mode; with `align`, through its heads as well.

    texts: the TextBatch of each batch of `batch_size` images, for the transport's diagnostics.
    """
    tokenizer.eval()
    pooled, projected, indices, quality, seen = [], [], [], [], []
    for number, part in enumerate(images.split(batch_size)):
        batch = to_float(part)
        codes = tokenizer.encode(batch)
        pooled.append([reduce(level.quantized, "b c h w -> b c", "mean") for level in codes.levels])
        if align is not None:
            projected.append([align.embed(level.quantized, i).mean(1) for i, level in enumerate(codes.levels)])
        if align is not None and texts is not None:
            align(codes, texts[number])
            seen.append({name: align.last[name] * len(part) for name in ("plan_entropy", "marginal_error")})
        indices.append(codes.final.indices)
        if reconstruct:
            quality.append(psnr(tokenizer.decode(codes), batch))
    transport = None
    if seen:
        transport = {name: (sum(part[name] for part in seen) / len(images)).tolist() for name in seen[0]}
    return Encoded(
        [torch.cat(level) for level in zip(*pooled, strict=True)],
        [torch.cat(level) for level in zip(*projected, strict=True)] if projected else None,
        torch.cat(indices),
        torch.cat(quality) if quality else None,
        transport,
    )


def text_targets(store: TextStore, train: Sequence[int], held_out: Sequence[int], *, words: int = 100) -> TextTargets:
    """Mean unit embeddings and frequent words of the texts; the words are chosen on the training rows alone."""
    chosen = frequent_words(store, train, words)

    def means(rows: Sequence[int]) -> list[Tensor]:
        batch = store.batch(rows)
        return [
            (units.embeddings * units.mask[..., None]).sum(1) / units.mask.sum(1, keepdim=True).clamp(min=1)
            for units in (batch[name] for name in GRANULARITIES)
        ]

    return TextTargets(means(train), means(held_out), presence(store, train, chosen), presence(store, held_out, chosen))


def score(
    train: Encoded,
    held_out: Encoded,
    targets: TextTargets,
    *,
    codebook_size: int,
) -> dict[str, Any]:
    """The numbers of one run, as `demo.json` holds them; images without text take no part in retrieval."""
    use = codebook_use(held_out.indices, codebook_size)
    fitted, word_map, trained = {}, {}, {}
    for i, name in enumerate(f"level{i + 1}" for i in range(len(held_out.pooled))):
        told = targets.train[i].abs().sum(1) > 0
        asked = targets.held_out[i].abs().sum(1) > 0
        x, y = train.pooled[i], held_out.pooled[i]
        text = targets.held_out[i][asked].double()
        fitted[name] = recall(fit_ridge(x[told], targets.train[i][told]).predict(y[asked]), text)
        words = fit_ridge(x, targets.train_words.double()).predict(y)
        word_map[name] = mean_average_precision(words, targets.held_out_words)
        if held_out.projected is not None:
            trained[name] = recall(held_out.projected[i][asked].double(), text)
    levels = len(held_out.pooled)
    return {
        "psnr": held_out.psnr.mean().item(),
        "psnr_standard_error": (held_out.psnr.std() / len(held_out.psnr) ** 0.5).item(),
        "usage": use.usage,
        "perplexity": use.perplexity,
        "dead_codes": use.dead,
        "retrieval_fitted": fitted,
        "word_map": word_map,
        "retrieval": trained or None,
        "plan_entropy": (held_out.transport or {}).get("plan_entropy", [None] * levels),
        "marginal_error": (held_out.transport or {}).get("marginal_error", [None] * levels),
    }
