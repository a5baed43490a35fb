"""The protocol card of every metric: what it is, its direction and unit, and the images and probe that it uses."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from tavq_plugin.evaluation.metrics.frechet import SUBSETS
from tavq_plugin.evaluation.metrics.purity import PERMUTATIONS
from tavq_plugin.evaluation.probes import PENALTY


@dataclass(frozen=True)
class Card:
    """What a reader must know about a metric."""

    title: str
    better: str  # "higher", "lower", or "–" if neither is better by itself
    unit: str
    what: str
    probe: str = "none"
    on: str = "held-out images"
    digits: int = 2

    def to_dict(self) -> dict[str, Any]:
        """The card as a protocol records it."""
        return vars(self)


_RIDGE = (
    f"ridge regression, penalty {PENALTY:g} on standardised features, fitted on training rows in the same way for "
    "every run"
)
_POOLED = f"{_RIDGE}; features: quantized codes averaged over the grid"
_JUDGE = "frozen {}: images resized to {} px (bilinear, antialiased), pooled last features"
_FEW = "few images bias it upwards: compare equal n only"
_LEVELS = "mean over the levels; level i is name_i"

CARDS = {
    "psnr": Card("PSNR", "higher", "dB", "per image, after clamping and rounding to 8 bit; mean over images"),
    "ssim": Card(
        "SSIM", "higher", "0–1", "Gaussian window of 11, σ 1.5, after rounding to 8 bit; torchmetrics", digits=3
    ),
    "lpips": Card("LPIPS (VGG)", "lower", "–", "torchmetrics, VGG16, after rounding to 8 bit", digits=3),
    "rfid": Card(
        "rFID", "lower", "–", f"Inception of 2015, TF1 resizing, held-out images against their reconstructions; {_FEW}"
    ),
    "kid": Card(
        "KID", "lower", "–", f"the same features, cubic kernel, {SUBSETS} subsets of half the images", digits=4
    ),
    "usage": Card(
        "usage", "higher", "%", "share of the codes that occur in any image, at the level that the decoder reads"
    ),
    "perplexity": Card(
        "perplexity", "higher", "codes", "exp of the entropy of code frequencies, at the same level", digits=1
    ),
    "dead_codes": Card("dead codes", "lower", "codes", "codes that never occur, at the same level", digits=0),
    "word_map": Card("word mAP", "higher", "%", f"ranking images for each frequent word; {_LEVELS}", _POOLED),
    "word_map_codes": Card(
        "word mAP, code histograms",
        "higher",
        "%",
        f"the same, predicted from how often each code occurs; {_LEVELS}",
        f"{_RIDGE}; features: share of each code in the image",
    ),
    "masked_word": Card(
        "masked word R@1",
        "higher",
        "%",
        "each frequent word of a text is masked and guessed among all frequent words, "
        "from the codes of all levels and the text's other words (LG-VQ's word prediction, in our reading)",
        _RIDGE,
    ),
    "masked_word_gain": Card(
        "masked word R@1, above text alone",
        "higher",
        "points",
        "the same, minus the score from the other words without codes",
        _RIDGE,
    ),
    "similarity_mse": Card(
        "code–word similarity MSE",
        "lower",
        "–",
        "cosines between a text's words against cosines between the codes that these words "
        "pick (LG-VQ's similarity, in our reading: codes of level 1 through the fitted probe)",
        _POOLED,
        digits=4,
        on="the held-out images of retrieval by transport",
    ),
    "purity": Card(
        "code–word purity",
        "higher",
        "millibit",
        "mutual information of code and frequent word, minus its mean over "
        f"{PERMUTATIONS} permutations of the texts; {_LEVELS}",
        digits=1,
    ),
    "stability_codes": Card(
        "code→word stability",
        "higher",
        "−1–1",
        "between two seeds: correlation of the word tables of matched codes, weighted "
        "by use; codes are matched one to one by where they occur in the training images",
        digits=3,
    ),
    "stability_codes_null": Card(
        "code→word stability, codes matched at random", "–", "−1–1", "the null of code→word stability", digits=3
    ),
    "stability_words": Card(
        "word→image stability",
        "higher",
        "−1–1",
        "between two seeds: correlation of the word probes' scores of the held-out images, mean over words and levels",
        _POOLED,
        digits=3,
    ),
    "seconds_per_step": Card(
        "seconds per step", "lower", "s", "median over the training steps", on="training", digits=3
    ),
    "plugin_share": Card(
        "plug-in, share of a step",
        "lower",
        "0–1",
        "time of the hierarchy, the losses on codes and their backward pass",
        on="training",
        digits=3,
    ),
}
for _k in (1, 5, 10, 50):
    for _way, _arrow in (("image_text", "image→text"), ("text_image", "text→image")):
        CARDS[f"{_way}_r{_k}"] = Card(
            f"R@{_k}, {_arrow}",
            "higher",
            "%",
            f"the own pair is among the {_k} of greatest cosine between the probe's output and a text's mean unit "
            f"embedding, both centred; {_LEVELS}",
            _POOLED,
        )
        CARDS[f"{_way}_ot_r{_k}"] = Card(
            f"R@{_k}, {_arrow}, by transport",
            "higher",
            "%",
            f"the own pair is among the {_k} of least transport cost between codes and "
            f"text units, minus each image's and each text's mean; {_LEVELS}",
            f"{_POOLED}; applied to every code",
            on="the first held-out images with text",
        )
for _name, _title, _size in (("mobilenet", "MobileNet", 224), ("squeezenet", "SqueezeNet", 227)):
    _by = _JUDGE.format(_title, _size)
    CARDS[f"fd_{_name}"] = Card(f"FD-{_title}", "lower", "–", f"Fréchet distance, {_by}; this is not FID; {_FEW}")
    CARDS[f"kd_{_name}"] = Card(f"KD-{_title}", "lower", "–", f"kernel distance, {_by}; this is not KID", digits=4)
    CARDS[f"agreement_{_name}"] = Card(
        f"class agreement, {_title}", "higher", "%", f"images whose likeliest class stays the same; {_by}"
    )

HEADLINE = (
    "psnr", "ssim", "lpips", "rfid", "fd_mobilenet", "usage", "perplexity", "image_text_r10", "image_text_r50",
    "text_image_r50", "image_text_ot_r10", "word_map", "word_map_codes", "masked_word_gain", "purity",
    "stability_codes", "seconds_per_step",
)  # fmt: skip
"""The metrics of the first table; the page shows all."""


def card_of(metric: str) -> Card:
    """The card of a metric, or of one level of it (`name_2`). Raises KeyError for a metric without a card.

    >>> card_of("word_map_2").title
    'word mAP, level 2'
    """
    if metric in CARDS:
        return CARDS[metric]
    of_level = re.fullmatch(r"(.+)_([123])", metric)
    if of_level is None or of_level[1] not in CARDS:
        raise KeyError(f"metric {metric!r} has no protocol card: add one to CARDS")
    card = CARDS[of_level[1]]
    return replace(card, title=f"{card.title}, level {of_level[2]}")
