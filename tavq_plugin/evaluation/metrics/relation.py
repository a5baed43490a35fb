"""Code–word similarity after LG-VQ: are two codes as similar as the words that pick them?"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.evaluation.metrics.permuted_texts import Chance, chance_from, permuted_positions
from tavq_plugin.evaluation.probes.ridge import Ridge
from tavq_plugin.types import Units

IMAGES = 8  # whose codes go through the probe at a time
DEALS = 10  # permutations of the texts: each takes as long as the error itself


class SimilarityErrors(NamedTuple):
    """`similarity_error` of images with their own texts and with other images' texts."""

    own: Tensor  # b, NaN where the text has fewer than two words
    with_other_texts: Tensor  # b, mean over the permutations of the texts
    chance: Chance  # of the mean over images


def similarity_error(codes: Tensor, units: Units, probe: Ridge) -> Tensor:
    """Mean squared difference between cosines of words and cosines of their codes; b n c, b m d -> b.

    LG-VQ (arXiv 2405.14206, relationship alignment and its similarity figure), in our reading: each word picks the
    code of the image that is nearest to it by cosine. For each pair of different words, the cosine of the two picked
    codes is compared with the cosine of the two words. LG-VQ reads codes through the head it trained; here the codes of
    all runs go through the fitted probe, and words are the store's centred units. NaN for an image with fewer than two
    words.
    """
    return _error(_points(codes, probe), units.embeddings.double(), units.mask)


def similarity_errors(
    codes: Tensor, units: Units, probe: Ridge, *, permutations: int = DEALS, seed: int = 0
) -> SimilarityErrors:
    """`similarity_error` and its control, in which each image gets the text of a random image; b n c, b m d.

    If the two do not differ, the error says nothing about what the codes know of their text. Raises ValueError for
    fewer than two images, or if no text has two words.
    """
    orders = list(permuted_positions(len(codes), permutations=permutations, seed=seed))
    words, mask = units.embeddings.double(), units.mask
    deals = torch.stack([torch.arange(len(codes)), *orders])
    parts = []
    for start in range(0, len(codes), IMAGES):
        points = _points(codes[start : start + IMAGES], probe)
        parts.append(
            torch.stack([_error(points, words[deal], mask[deal]) for deal in deals[:, start : start + IMAGES]])
        )
    own, *others = torch.cat(parts, 1)
    chance = chance_from([other.nanmean().item() for other in others])
    return SimilarityErrors(own, torch.stack(others).nanmean(0), chance)


def _points(codes: Tensor, probe: Ridge) -> Tensor:
    """Each code through the probe, without its offset, to unit length; b n c -> b n d."""
    return F.normalize((probe.predict(codes.flatten(0, 1)) - probe.offset).unflatten(0, codes.shape[:2]), dim=2)


def _error(points: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """b n d, b m d, b m -> b."""
    words = F.normalize(words, dim=2)
    nearest = (words @ points.mT).argmax(2)
    picked = points.gather(1, nearest[..., None].expand(-1, -1, points.shape[2]))
    error = (words @ words.mT - picked @ picked.mT).square()
    pairs = mask[:, None] & mask[:, :, None]
    pairs &= ~torch.eye(pairs.shape[1], dtype=torch.bool)
    return (error * pairs).sum((1, 2)) / pairs.sum((1, 2))
