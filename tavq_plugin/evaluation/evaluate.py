"""Evaluate one trained tokenizer on held-out images, with probes that are fitted in the same way for every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tavq_plugin.evaluation.encoded_images import (
    EncodedImages,
    codebook_sizes,
    encode_images,
    share_beyond_indices,
)
from tavq_plugin.evaluation.judges import METRICS_BY_JUDGE, Judges
from tavq_plugin.evaluation.level_scores import LevelCodes, level_scores
from tavq_plugin.evaluation.metrics.cards import STORED
from tavq_plugin.evaluation.metrics.codebook import codebook_use
from tavq_plugin.evaluation.metrics.image import WINDOW, psnr, ssim
from tavq_plugin.evaluation.metrics.words import masked_words
from tavq_plugin.evaluation.probes.ridge import PenaltyAtEdge
from tavq_plugin.evaluation.results import RunResults
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.pixels import to_float

GRID_IMAGES = 8  # held-out images whose reconstructions are kept for the picture
LEFT_OPEN = 0.01  # share of the vectors' variance that the indices of a single code book leave open at most: rounding
SUMMED = ("tokens", "bits")  # over the levels; other metrics are averaged


@torch.no_grad()
def evaluate_run(tokenizer: Tokenizer, targets: TextTargets, judges: Judges) -> RunResults:
    """All metrics of a trained tokenizer, which is left in eval mode.

    Every probe reads quantized codes and is fitted on the training rows. A metric without a finite value is named in
    `missing`, with the reason. Raises FloatingPointError if the codes hold NaN or infinity.
    """
    corpus, batch_size = targets.corpus, targets.settings.batch_size
    tokenizer.eval()
    train = encode_images(tokenizer, corpus.images[: len(targets.probe_rows)], batch_size=batch_size)
    images = corpus.images[corpus.n_train :]
    held_out = encode_images(tokenizer, images, batch_size=batch_size, keep=targets.transport_images, decode=True)
    return score_tokenizer(tokenizer, train, held_out, targets, judges)


@torch.no_grad()
def score_tokenizer(
    tokenizer: Tokenizer, train: EncodedImages, held_out: EncodedImages, targets: TextTargets, judges: Judges
) -> RunResults:
    """All metrics of a tokenizer's last levels; what rests on a number of codes that is not known is `missing`."""
    greatest = max(int(index.max()) for index in (train.indices[-1], held_out.indices[-1]) if index is not None)
    sizes = codebook_sizes(tokenizer, greatest)[-len(held_out.pooled) :]
    results, unknown = score_codes(train, held_out, sizes, targets, judges), unknown_sizes(tokenizer, held_out, targets)
    values = {name: value for name, value in results.values.items() if name not in unknown}
    return replace(results, values=values, missing=results.missing | unknown)


def unknown_sizes(tokenizer: Tokenizer, held_out: EncodedImages, targets: TextTargets) -> dict[str, str]:
    """Why tokens, bits or usage of the stored level are not known, by metric; empty where they are.

    They are not if the host shows no codebook, or if an index does not stand for one vector, as with several code
    books: adapters give the indices of one.
    """
    unknown: dict[str, str] = {}
    if tokenizer.adapter.codebook() is None:
        why = "the host shows no codebook, so the number of its codes is not known"
        unknown |= dict.fromkeys((f"usage_{STORED}", "usage", "dead_codes", f"bits_{STORED}", "bits"), why)
    indices = held_out.indices[-1]
    if (
        indices is not None
        and share_beyond_indices(held_out.quantized[-1], indices[targets.transport_images]) > LEFT_OPEN
    ):
        why = (
            "an image's indices do not give the vectors that the decoder reads, so further code books have tokens that "
            "are not counted; usage, histograms and random vectors are those of the first code book"
        )
        names = (f"tokens_{STORED}", "tokens", f"bits_{STORED}", "bits")
        unknown |= dict.fromkeys(names, why)
    return unknown


@torch.no_grad()
def score_codes(
    train: EncodedImages, held_out: EncodedImages, sizes: Sequence[int | None], targets: TextTargets, judges: Judges
) -> RunResults:
    """All metrics of encoded images, of a tokenizer or of a floor.

    The last level is compared as level 3, whatever the number of levels. `sizes` has the number of codes of each level,
    None for features without codes.
    """
    levels, images = len(held_out.pooled), targets.corpus.images[targets.corpus.n_train :]
    if len(held_out.reconstruction):
        results = judges.judge(held_out.reconstruction)
        results |= image_scores(held_out.reconstruction, images, with_ssim=targets.settings.ssim)
    else:
        names = ("psnr", "ssim", *(metric for metrics in METRICS_BY_JUDGE.values() for metric in metrics))
        results = RunResults(missing=dict.fromkeys(names, "these features give no image"))
    results |= codebook_scores(held_out.indices, sizes)
    for position in range(levels):
        codes = LevelCodes(STORED - levels + 1 + position, position, train, held_out, sizes[position], targets)
        results |= level_scores(codes)
    if levels == STORED:
        results |= masked_word_scores(train, held_out, targets)
    artifacts = {"shown": held_out.reconstruction[:GRID_IMAGES]} if len(held_out.reconstruction) else {}
    if train.indices[-1] is not None and held_out.indices[-1] is not None and sizes[-1] is not None:
        artifacts |= {"train_indices": train.indices[-1], "held_out_indices": held_out.indices[-1]}
        artifacts |= {"codes": torch.tensor(sizes[-1])}
    return _finite(_with_all_levels(results | RunResults(artifacts=artifacts), levels))


def image_scores(reconstruction: Tensor, images: Tensor, *, with_ssim: bool = True) -> RunResults:
    """PSNR and, unless it is left out, SSIM of each image; n 3 h w uint8, n 3 h w uint8."""
    batches = zip(reconstruction.split(50), images.split(50), strict=True)
    pairs = [(to_float(ours), to_float(truth)) for ours, truth in batches]
    quality = RunResults(per_image={"psnr": torch.cat([psnr(*pair) for pair in pairs])})
    if not with_ssim:
        return quality | RunResults(missing={"ssim": "SSIM was left out of this protocol"})
    if images.shape[-1] < WINDOW:
        why = f"its window is {WINDOW} pixels wide and images are {images.shape[-1]}"
        return quality | RunResults(missing={"ssim": why})
    return quality | RunResults(per_image={"ssim": torch.cat([ssim(*pair) for pair in pairs])})


def codebook_scores(indices: Sequence[Tensor | None], sizes: Sequence[int | None]) -> RunResults:
    """Usage, tokens and bits per image of each level; `usage`, `perplexity`, `dead_codes` are the last level's."""
    values: dict[str, float] = {}
    for level, (index, size) in enumerate(zip(indices, sizes, strict=True), STORED - len(sizes) + 1):
        if index is None or size is None:
            continue
        use, tokens = codebook_use(index, size), index[0].numel()
        values |= {f"usage_{level}": use.usage, f"tokens_{level}": tokens}
        values[f"bits_{level}"] = tokens * math.log2(size)
        if level == STORED:
            values |= {"usage": use.usage, "perplexity": use.perplexity, "dead_codes": float(use.dead)}
    return RunResults(values)


def masked_word_scores(train: EncodedImages, held_out: EncodedImages, targets: TextTargets) -> RunResults:
    """Masked words guessed from the codes of all levels, and the gain over a guess from the text alone."""
    names = ("masked_word", "masked_word_gain")
    if len(targets.top_words) < 2:
        return RunResults(missing=dict.fromkeys(names, "the training texts have fewer than two frequent words"))
    try:
        guessed = masked_words(
            torch.cat(train.pooled, 1), torch.cat(held_out.pooled, 1), targets.train_words, targets.held_out_words,
            targets.word_vectors, penalties=targets.settings.penalties,
        )  # fmt: skip
    except PenaltyAtEdge as error:
        return RunResults(missing=dict.fromkeys(names, str(error)))
    scores = (100 * guessed.with_codes, 100 * (guessed.with_codes - guessed.text_alone))
    results = RunResults(per_image=dict(zip(names, scores, strict=True)))
    if guessed.chance is None:
        return results
    mean, spread = guessed.chance
    alone = guessed.text_alone.nanmean().item()
    return results | RunResults(
        chance={"masked_word": (100 * mean, 100 * spread), "masked_word_gain": (100 * (mean - alone), 100 * spread)}
    )


def _with_all_levels(results: RunResults, levels: int) -> RunResults:
    """Add `name`, over all levels, for each metric that every level has as `name_1`, `name_2`, …: a mean, or a sum."""

    def over_levels(table: dict) -> dict:
        names = {name[:-2] for name in table if name.endswith("_1")} - table.keys()
        parts = {name: [f"{name}_{level + 1}" for level in range(levels)] for name in sorted(names)}
        return {
            name: sum(table[part] for part in of_levels) / (1 if name in SUMMED else levels)
            for name, of_levels in parts.items()
            if table.keys() >= set(of_levels)
        }

    means, spreads = ({name: pair[i] for name, pair in results.chance.items()} for i in (0, 1))
    chance = {name: (mean, over_levels(spreads)[name]) for name, mean in over_levels(means).items()}
    return results | RunResults(over_levels(results.values), over_levels(results.per_image), chance=chance)


def _finite(results: RunResults) -> RunResults:
    """Add each metric's mean over images to `values`, and move metrics without a finite value to `missing`."""
    empty = [name for name, value in results.per_image.items() if value.isnan().all()]
    missing = dict.fromkeys(empty, "no held-out image has a value: texts without units or frequent words")
    per_image = {name: value for name, value in results.per_image.items() if name not in missing}
    values = results.values | {name: value.nanmean().item() for name, value in per_image.items()}
    missing |= {name: f"it came out as {value}" for name, value in values.items() if not math.isfinite(value)}
    return RunResults(
        {name: value for name, value in values.items() if name not in missing},
        {name: value.float() for name, value in per_image.items() if name not in missing},
        results.missing | missing,
        results.artifacts,
        {name: value for name, value in results.chance.items() if name in values and name not in missing},
    )
