"""Scores of written captions against true ones: BLEU-4, ROUGE-L and CIDEr by pycocoevalcap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tavq_plugin.tasks.vocabulary import words_of

JAVA = "pycocoevalcap computes it with a Java program, which is not part of this package"
NO_PACKAGE = 'pycocoevalcap is not installed: pip install "tavq-plugin[tasks]"'
METRICS = ("bleu4", "rouge_l", "cider")


class CaptionScores(NamedTuple):
    """What is known of n captions."""

    values: Mapping[str, float]  # BLEU-4 of all captions together; the mean of the others
    per_image: Mapping[str, Tensor]  # n each; without BLEU-4, which is no mean over images
    missing: Mapping[str, str]  # metric → why it is not computed


def caption_scores(written: Sequence[str], true: Sequence[Sequence[str]]) -> CaptionScores:
    """BLEU-4, ROUGE-L and CIDEr of n captions, each against one or more true ones.

    Texts are split by `words_of`. CIDEr weighs words by how many of these n images have them in a true caption, so it
    is comparable only between methods on the same images.

    Raises ValueError if an image has no true caption, or numbers differ.
    """
    if len(written) != len(true) or not written or not all(true):
        raise ValueError(
            f"got {len(written)} captions and {len(true)} images, {sum(not texts for texts in true)} of them without "
            "a true caption: give one caption and at least one true one per image"
        )
    missing = {"meteor": JAVA, "spice": JAVA}
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError:
        return CaptionScores({}, {}, dict.fromkeys(METRICS, NO_PACKAGE) | missing)
    results = {i: [" ".join(words_of(text))] for i, text in enumerate(written)}
    truths = {i: [" ".join(words_of(text)) for text in texts] for i, texts in enumerate(true)}
    bleu, _ = Bleu(4).compute_score(truths, results, verbose=0)
    per_image = {
        "rouge_l": torch.as_tensor(Rouge().compute_score(truths, results)[1]).double(),
        "cider": torch.as_tensor(Cider().compute_score(truths, results)[1]).double(),
    }
    values = {"bleu4": float(bleu[3])} | {name: value.mean().item() for name, value in per_image.items()}
    return CaptionScores(values, per_image, missing)
