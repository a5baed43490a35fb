"""The protocol card of every metric: what it is, its direction, unit and probe, and the images it is measured on."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from tavq_plugin.evaluation.metrics.frechet import SUBSETS
from tavq_plugin.evaluation.metrics.purity import PERMUTATIONS

STORED = 3  # the level whose codes are stored, and which the decoder reads


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
    text: bool = False  # whether it depends on the held-out texts, so that dealing them at random gives a chance
    level: int | None = None  # None: the whole run, or all levels together
    together: str = ""  # what the name without a level means, for a metric that every level has

    def to_dict(self) -> dict[str, Any]:
        """The card as a protocol records it."""
        return {name: value for name, value in vars(self).items() if name != "together"}

    @property
    def head(self) -> str:
        """The title without its level, for a table whose caption names the level."""
        return self.title.removesuffix(f", level {self.level}")


_FITTED = "fitted on training rows in the same way for every run"
_RIDGE = f"ridge regression on standardised features, {_FITTED}; penalty by leave-one-out error on these rows"
_POOLED = f"{_RIDGE}; features: quantized codes averaged over the grid"
_HISTOGRAM = f"{_RIDGE}; features: share of each code in the image"
_GRID = f"{_RIDGE}; features: the code vectors of all places, averaged to at most 8 × 8 places, flattened"
_ATTENTIVE = f"learned queries that attend to the same places, {_FITTED}; stopped by a fifth of these rows"
_RANDOM = f"{_GRID}; each code's vector is replaced by a random one"
_JUDGE = "frozen {}: images resized to {} px (bilinear, antialiased), pooled last features"
_FEW = "few images bias it upwards: compare equal n only"
_SUBSETS = f"{SUBSETS} random subsets of half the images"
_MEAN, _SUM = "mean over the levels", "sum over the levels"
_AT_DECODER = f"level {STORED}, which the decoder reads"
_TEXT = "a text's mean unit embedding"
_UNSEEN = "a text's mean vector of word co-occurrence in the training texts, an encoder that no method trained with"
_WORD_MAP = "ranking images for each frequent word, average precision with shared ties, mean over words"

CARDS = {
    "psnr": Card(
        "PSNR", "higher", "dB", "per image, after clamping and rounding to 8 bit, mean over images; a perfect image "
        "counts as if one sub-pixel were off by one",
    ),
    "ssim": Card(
        "SSIM", "higher", "0–1", "Gaussian window of 11, σ 1.5, after rounding to 8 bit, without the 5 pixels at each "
        "border; as scikit-image has it", digits=3,
    ),
    "lpips": Card("LPIPS (VGG)", "lower", "–", "torchmetrics, VGG16, after rounding to 8 bit", digits=3),
    "rfid": Card(
        "rFID", "lower", "–", f"Inception of 2015, TF1 resizing, held-out images against their reconstructions; {_FEW}"
    ),
    "kid": Card("KID", "lower", "–", f"kernel distance of rFID's features, cubic, mean over {_SUBSETS}", digits=4),
    "kid_spread": Card("KID spread", "–", "–", f"standard deviation of KID over {_SUBSETS}", digits=4),
    "usage": Card("usage", "higher", "%", "share of the codes that occur in any image", together=_AT_DECODER),
    "perplexity": Card(
        "perplexity", "higher", "codes", "exp of the entropy of code frequencies", digits=1, together=_AT_DECODER
    ),
    "dead_codes": Card(
        "dead codes", "lower", "codes", "codes that never occur", digits=0, together=_AT_DECODER
    ),
    "tokens": Card("tokens", "–", "tokens", "codes stored for one image", digits=0, together=_SUM),
    "bits": Card("bits", "–", "bits", "tokens × log2 of the codebook's size, for one image", digits=0, together=_SUM),
    "word_in_box_map": Card(
        "word-in-box mAP", "higher", "%", "ranking the places of images with boxes for each word: is the place in a "
        "box whose phrase has the word? mean over words", f"{_RIDGE}; features: the code vector of one place",
        on="held-out images with boxes", text=True, together=_MEAN,
    ),
    "masked_word": Card(
        "masked word R@1", "higher", "%",
        "each frequent word of a text is masked and guessed among all frequent words, from the codes of all levels and "
        "the text's other words (LG-VQ's word prediction, in our reading); chance: codes of other images",
        _RIDGE, text=True,
    ),
    "masked_word_gain": Card(
        "masked word R@1, above text alone", "higher", "points",
        "masked word R@1 minus the score from the text's other words without codes; chance: codes of other images",
        _RIDGE, text=True,
    ),
    "similarity_mse": Card(
        "code–word similarity MSE", "lower", "–",
        "cosines between a text's words against cosines between the codes that these words pick (LG-VQ's similarity, "
        "in our reading: codes of level 1 through the fitted probe); chance: texts of other images",
        _POOLED, "the held-out images of retrieval by transport", 4, text=True,
    ),
    "purity": Card(
        "code–word purity", "higher", "millibit",
        f"mutual information of code and frequent word, minus its mean over {PERMUTATIONS} permutations of the texts",
        digits=1, text=True, together=_MEAN,
    ),
    "stability_codes": Card(
        "code→word stability", "higher", "−2–2",
        "between two seeds: correlation of the word tables of matched codes, weighted by use, minus the same with "
        "texts dealt at random; codes are matched one to one by where they occur in the training images",
        digits=3, text=True,
    ),
    "stability_codes_null": Card(
        "code→word stability, dealt texts", "–", "−1–1",
        "the correlation of code→word stability where the held-out texts are dealt at random: what codes that occur in "
        "the same images give with any texts; it is subtracted there", digits=3,
    ),
    "stability_words": Card(
        "word→image stability", "higher", "−1–1",
        "between two seeds: correlation of the word probes' scores of the held-out images, mean over words and levels",
        _POOLED, digits=3,
    ),
    "seconds_per_step": Card(
        "seconds per step", "lower", "s", "median over the training steps", on="training", digits=3
    ),
    "plugin_share": Card(
        "plug-in, share of a step", "lower", "0–1", "time of the hierarchy, the losses on codes and their backward "
        "pass", on="training", digits=3,
    ),
}  # fmt: skip


def _recall_card(title: str, k: int, of: str, probe: str) -> Card:
    what = f"the own text is among the {k} of greatest cosine between the probe's output and {of}, both centred"
    return Card(f"{title} R@{k}".strip(), "higher", "%", what, probe, text=True, together=_MEAN)


def _median_rank_card(title: str, of: str, probe: str) -> Card:
    what = f"median rank of the own text by cosine between the probe's output and {of}, both centred"
    return Card(f"{title} median rank", "lower", "rank", what, probe, digits=1, text=True, together=_MEAN)


def _word_map_card(title: str, probe: str) -> Card:
    return Card(title, "higher", "%", _WORD_MAP, probe, text=True, together=_MEAN)


for _name, _title, _of, _probe in (
    ("grid", "grid", _TEXT, _GRID),
    ("attentive", "attentive", _TEXT, _ATTENTIVE),
    ("unseen", "unseen-text", _UNSEEN, _GRID),
    ("random_vectors", "random-vector", _TEXT, _RANDOM),
    ("histogram", "histogram", _TEXT, _HISTOGRAM),
):
    for _k in (1, 5, 10, 50):
        CARDS[f"{_name}_r{_k}"] = _recall_card(_title, _k, _of, _probe)
    if _name != "histogram":
        CARDS[f"{_name}_median_rank"] = _median_rank_card(_title, _of, _probe)
    if _name not in ("histogram", "unseen"):
        CARDS[f"{_name}_word_map"] = _word_map_card(f"{_title} word mAP", _probe)
CARDS["word_map"] = _word_map_card("pooled word mAP", _POOLED)
CARDS["word_map_codes"] = _word_map_card("histogram word mAP", _HISTOGRAM)
for _k in (1, 5, 10, 50):
    for _way, _arrow in (("image_text", "image→text"), ("text_image", "text→image")):
        CARDS[f"{_way}_r{_k}"] = Card(
            f"pooled R@{_k}, {_arrow}",
            "higher",
            "%",
            f"the own pair is among the {_k} of greatest cosine between the probe's output and {_TEXT}, both centred",
            _POOLED,
            text=True,
            together=_MEAN,
        )
        CARDS[f"{_way}_ot_r{_k}"] = Card(
            f"transport R@{_k}, {_arrow}",
            "higher",
            "%",
            f"the own pair is among the {_k} of least transport cost between codes and text units, minus each image's "
            "and each text's mean",
            f"{_POOLED}; applied to every code",
            on="the first held-out images with text",
            text=True,
            together=_MEAN,
        )
for _name, _title, _size in (("mobilenet", "MobileNet", 224), ("squeezenet", "SqueezeNet", 227)):
    _by = _JUDGE.format(_title, _size)
    CARDS[f"fd_{_name}"] = Card(f"FD-{_title}", "lower", "–", f"Fréchet distance, {_by}; this is not FID; {_FEW}")
    CARDS[f"kd_{_name}"] = Card(
        f"KD-{_title}", "lower", "–", f"kernel distance, mean over {_SUBSETS}, {_by}; this is not KID", digits=4
    )
    CARDS[f"kd_{_name}_spread"] = Card(
        f"KD-{_title} spread", "–", "–", f"standard deviation of KD-{_title} over {_SUBSETS}", digits=4
    )
    CARDS[f"agreement_{_name}"] = Card(
        f"class agreement, {_title}", "higher", "%", f"images whose likeliest class stays the same; {_by}"
    )

PRIMARY = (
    "psnr", "ssim", "fd_mobilenet", "rfid", "usage", "perplexity", "tokens_3", "bits_3",
    "grid_r1_3", "grid_r10_3", "grid_median_rank_3", "grid_word_map_3", "attentive_r10_3", "attentive_word_map_3",
    "histogram_r10_3", "word_map_codes_3", "word_in_box_map_3", "unseen_r10_3", "random_vectors_r10_3",
)  # fmt: skip
"""The metrics of the primary table: the stored codes alone."""

BY_LEVEL = (
    "usage", "tokens", "bits", "grid_r10", "grid_word_map", "attentive_r10", "attentive_word_map", "unseen_r10",
    "word_in_box_map", "purity",
)  # fmt: skip
"""The metrics of the table of all levels, without the level."""

APPENDIX = (
    "lpips", "kid", "kid_spread", "kd_mobilenet", "kd_mobilenet_spread", "agreement_mobilenet", "fd_squeezenet",
    "kd_squeezenet", "kd_squeezenet_spread", "agreement_squeezenet", "dead_codes",
    "attentive_r1_3", "attentive_median_rank_3", "unseen_r1_3", "unseen_median_rank_3", "random_vectors_word_map_3",
    "image_text_r10_3", "image_text_r50_3", "text_image_r10_3", "text_image_r50_3", "word_map_3",
    "histogram_r50_3",
    "image_text_ot_r10_3", "text_image_ot_r10_3", "masked_word", "masked_word_gain", "similarity_mse",
    "stability_codes", "stability_codes_null", "stability_words", "seconds_per_step", "plugin_share",
)  # fmt: skip
"""The metrics of the appendix, most of them at the stored level."""


def card_of(metric: str) -> Card:
    """The card of a metric, or of one level of it (`name_2`). Raises KeyError for a metric without a card.

    >>> card_of("grid_r10_3").title, card_of("grid_r10_3").head, card_of("grid_r10_3").level
    ('grid R@10, level 3', 'grid R@10', 3)
    >>> card_of("word_map").level is None
    True
    """
    if metric in CARDS:
        card = CARDS[metric]
        return replace(card, what=f"{card.what}; {card.together}") if card.together else card
    of_level = re.fullmatch(r"(.+)_([123])", metric)
    if of_level is None or of_level[1] not in CARDS or not CARDS[of_level[1]].together:
        raise KeyError(f"metric {metric!r} has no protocol card: add one to CARDS")
    card, level = CARDS[of_level[1]], int(of_level[2])
    return replace(card, title=f"{card.title}, level {level}", level=level)
