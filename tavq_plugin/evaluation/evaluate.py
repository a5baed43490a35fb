"""Evaluate one trained tokenizer on held-out images, with probes that are fitted in the same way for every run."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor

from tavq_plugin.evaluation.encoded_images import EncodedImages, codebook_sizes, encode_images
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.metrics.codebook import codebook_use
from tavq_plugin.evaluation.metrics.image import WINDOW, psnr, ssim
from tavq_plugin.evaluation.metrics.purity import code_word_purity
from tavq_plugin.evaluation.metrics.relation import similarity_error
from tavq_plugin.evaluation.metrics.retrieval import (
    average_precision_per_image,
    recall_from_scores,
    recall_per_query,
)
from tavq_plugin.evaluation.metrics.transport_retrieval import transport_scores
from tavq_plugin.evaluation.metrics.words import code_histograms, masked_words
from tavq_plugin.evaluation.probes import Ridge, fit_ridge
from tavq_plugin.evaluation.results import RunResults
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.pixels import to_float
from tavq_plugin.types import Units

RECALL_AT = (1, 5, 10, 50)
GRID_IMAGES = 8  # held-out images whose reconstructions are kept for the picture


@torch.no_grad()
def evaluate_run(tokenizer: Tokenizer, targets: TextTargets, judges: Judges) -> RunResults:
    """All metrics of a trained tokenizer, which is left in eval mode.

    Every probe is a ridge regression from quantized codes, fitted on the training rows. A metric without a finite
    value is named in `missing`, with the reason. Raises FloatingPointError if the codes hold NaN or infinity.
    """
    corpus, batch_size = targets.corpus, targets.settings.batch_size
    tokenizer.eval()
    train = encode_images(tokenizer, corpus.images[: len(targets.probe_rows)], batch_size=batch_size)
    images = corpus.images[corpus.n_train :]
    held_out = encode_images(tokenizer, images, batch_size=batch_size, keep=targets.transport_images, decode=True)
    sizes = codebook_sizes(tokenizer, max(int(train.indices[-1].max()), int(held_out.indices[-1].max())))
    results = judges.judge(held_out.reconstruction) | image_scores(held_out.reconstruction, images)
    results |= codebook_scores(held_out.indices, sizes)
    levels = range(len(held_out.pooled))
    for level in levels:
        results |= word_scores(level, train, held_out, targets, sizes[level])
        results |= retrieval_scores(level, train, held_out, targets)
    results |= masked_word_scores(train, held_out, targets)
    artifacts = {"train_indices": train.indices[-1], "held_out_indices": held_out.indices[-1]}
    artifacts |= {"codes": torch.tensor(sizes[-1]), "shown": held_out.reconstruction[:GRID_IMAGES]}
    return _finite(_with_level_means(results | RunResults(artifacts=artifacts), len(levels)))


def image_scores(reconstruction: Tensor, images: Tensor) -> RunResults:
    """PSNR and SSIM of each image; n 3 h w uint8, n 3 h w uint8."""
    batches = zip(reconstruction.split(50), images.split(50), strict=True)
    pairs = [(to_float(ours), to_float(truth)) for ours, truth in batches]
    quality = RunResults(per_image={"psnr": torch.cat([psnr(*pair) for pair in pairs])})
    if images.shape[-1] < WINDOW:
        why = f"its window is {WINDOW} pixels wide and images are {images.shape[-1]}"
        return quality | RunResults(missing={"ssim": why})
    return quality | RunResults(per_image={"ssim": torch.cat([ssim(*pair) for pair in pairs])})


def codebook_scores(indices: list[Tensor], sizes: list[int]) -> RunResults:
    """`usage`, `perplexity` and `dead_codes` of the host's own level; `usage_1` and `usage_2` of the added levels."""
    use = codebook_use(indices[-1], sizes[-1])
    values = {"usage": use.usage, "perplexity": use.perplexity, "dead_codes": float(use.dead)}
    for level, (index, size) in enumerate(zip(indices[:-1], sizes[:-1], strict=True), 1):
        values[f"usage_{level}"] = codebook_use(index, size).usage
    return RunResults(values)


def word_scores(
    level: int, train: EncodedImages, held_out: EncodedImages, targets: TextTargets, codebook_size: int
) -> RunResults:
    """Word mAP of probes on a level's mean codes and on its code histograms, and its code–word purity."""
    number = level + 1
    histograms = [code_histograms(side.indices[level], codebook_size) for side in (train, held_out)]
    from_means = fit_ridge(train.pooled[level], targets.train_words).predict(held_out.pooled[level])
    from_histograms = fit_ridge(histograms[0], targets.train_words).predict(histograms[1])
    per_image = {
        f"word_map_{number}": average_precision_per_image(from_means, targets.held_out_words),
        f"word_map_codes_{number}": average_precision_per_image(from_histograms, targets.held_out_words),
    }
    words = RunResults(per_image=per_image, artifacts={f"word_scores_{number}": from_means.float()})
    try:
        purity = code_word_purity(histograms[1], targets.held_out_words).excess
    except ValueError as error:
        return words | RunResults(missing={"purity": str(error)})
    return words | RunResults({f"purity_{number}": purity})


def retrieval_scores(level: int, train: EncodedImages, held_out: EncodedImages, targets: TextTargets) -> RunResults:
    """Retrieval both ways, by a level's mean codes and by transport; at level 1 also LG-VQ's similarity."""
    train_has, held_out_has = targets.train_has_text[level], targets.held_out_has_text[level]
    if train_has.sum() < 2 or held_out_has.sum() < 2:
        count = f"{int(train_has.sum())} training and {int(held_out_has.sum())} held-out texts have units"
        names = (f"{way}_r{k}" for way in ("image_text", "text_image") for k in RECALL_AT)
        return RunResults(missing=dict.fromkeys(names, f"only {count} at level {level + 1}"))
    probe = fit_ridge(train.pooled[level][train_has], targets.train_means[level][train_has])
    predicted = probe.predict(held_out.pooled[level][held_out_has])
    text = targets.held_out_means[level][held_out_has].double()
    images, n = held_out_has.nonzero().flatten(), len(held_out_has)
    recalls = {
        "image_text": recall_per_query(predicted, text, at=RECALL_AT),
        "text_image": recall_per_query(text, predicted, at=RECALL_AT),
    }
    pooled = {
        f"{way}_{k}_{level + 1}": _at_images(100 * recall, images, n)
        for way, by_k in recalls.items()
        for k, recall in by_k.items()
    }
    return RunResults(per_image=pooled | _transport_recalls(level, held_out, targets, probe))


def _transport_recalls(level: int, held_out: EncodedImages, targets: TextTargets, probe: Ridge) -> dict[str, Tensor]:
    """Retrieval both ways by transport and, at level 1, the code–word similarity error: {metric: n values}."""
    images, units, n = targets.transport_images, targets.transport_units[level], len(held_out.indices[level])
    per_image: dict[str, Tensor] = {}
    if len(images) >= 2:
        at = tuple(k for k in RECALL_AT if k < len(images))
        score = transport_scores(held_out.quantized[level], held_out.indices[level][images], units, probe)
        for way, table in (("image_text", score), ("text_image", score.T)):
            recalls = recall_from_scores(table, at=at)
            per_image |= {
                f"{way}_ot_{k}_{level + 1}": _at_images(100 * recall, images, n) for k, recall in recalls.items()
            }
    if level == 0 and len(images):
        points = rearrange(held_out.quantized[0], "b c h w -> b (h w) c")
        parts = zip(points.split(8), units.embeddings.split(8), units.mask.split(8), strict=True)
        errors = [similarity_error(codes, Units(words, mask), probe) for codes, words, mask in parts]
        per_image["similarity_mse"] = _at_images(torch.cat(errors), images, n)
    return per_image


def masked_word_scores(train: EncodedImages, held_out: EncodedImages, targets: TextTargets) -> RunResults:
    """Masked words guessed from the codes of all levels, and the gain over a guess from the text alone."""
    names = ("masked_word", "masked_word_gain")
    if len(targets.top_words) < 2:
        return RunResults(missing=dict.fromkeys(names, "the training texts have fewer than two frequent words"))
    guessed = masked_words(
        torch.cat(train.pooled, 1), torch.cat(held_out.pooled, 1),
        targets.train_words, targets.held_out_words, targets.word_vectors,
    )  # fmt: skip
    scores = (100 * guessed.with_codes, 100 * (guessed.with_codes - guessed.text_alone))
    return RunResults(per_image=dict(zip(names, scores, strict=True)))


def _with_level_means(results: RunResults, levels: int) -> RunResults:
    """Add `name`, the mean over the levels, for each metric that every level has as `name_1`, `name_2`, …"""

    def means(table: dict) -> dict:
        names = {name[:-2] for name in table if name.endswith("_1")} - table.keys()
        parts = {name: [f"{name}_{level + 1}" for level in range(levels)] for name in sorted(names)}
        return {
            name: sum(table[part] for part in of_levels) / levels
            for name, of_levels in parts.items()
            if table.keys() >= set(of_levels)
        }

    return results | RunResults(means(results.values), means(results.per_image))


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
    )


def _at_images(values: Tensor, images: Tensor, n: int) -> Tensor:
    """Values of some of n images, NaN for the others; s, s -> n."""
    return torch.full((n,), torch.nan, dtype=torch.float64).index_copy(0, images, values.double())
