"""Code–word similarity after LG-VQ: are two codes as similar as the words that pick them?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.evaluation.probes import Ridge
from tavq_plugin.types import Units


def similarity_error(codes: Tensor, units: Units, probe: Ridge) -> Tensor:
    """Mean squared difference between cosines of words and cosines of their codes; b n c, b m d -> b.

    LG-VQ (arXiv 2405.14206, relationship alignment and its similarity figure), in our reading: each word picks the
    code of the image that is nearest to it by cosine. For each pair of different words, the cosine of the two picked
    codes is compared with the cosine of the two words. LG-VQ reads codes through the head it trained; here the codes of
    all runs go through the fitted probe, and words are the store's centred units. NaN for an image with fewer than two
    words.
    """
    points = F.normalize((probe.predict(codes.flatten(0, 1)) - probe.offset).unflatten(0, codes.shape[:2]), dim=2)
    words = F.normalize(units.embeddings.double(), dim=2)
    nearest = (words @ points.mT).argmax(2)
    picked = points.gather(1, nearest[..., None].expand(-1, -1, points.shape[2]))
    error = (words @ words.mT - picked @ picked.mT).square()
    pairs = units.mask[:, None] & units.mask[:, :, None]
    pairs &= ~torch.eye(pairs.shape[1], dtype=torch.bool)
    return (error * pairs).sum((1, 2)) / pairs.sum((1, 2))
