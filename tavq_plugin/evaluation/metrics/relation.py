"""Code–word similarity as LG-VQ measures it: are codes to each other as their words are?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.evaluation.probes import Ridge
from tavq_plugin.types import Units


def similarity_error(codes: Tensor, units: Units, probe: Ridge) -> Tensor:
    """Mean squared difference of two cosine tables, words' and their codes', over pairs of words; b n c, b m d -> b.

    LG-VQ (arXiv 2405.14206, relationship alignment and its similarity figure), in our reading: each word picks the
    code of the image that is nearest to it by cosine; the table of cosines among the picked codes is compared with
    that among the words, a pair of different words each. LG-VQ reads codes through the head it trained; here all
    runs' codes go through the fitted probe, and words are the store's centred units. NaN for an image with fewer
    than two words.
    """
    points = F.normalize((probe.predict(codes.flatten(0, 1)) - probe.offset).unflatten(0, codes.shape[:2]), dim=2)
    words = F.normalize(units.embeddings.double(), dim=2)
    nearest = (words @ points.mT).argmax(2)
    picked = points.gather(1, nearest[..., None].expand(-1, -1, points.shape[2]))
    error = (words @ words.mT - picked @ picked.mT).square()
    pairs = units.mask[:, None] & units.mask[:, :, None]
    pairs &= ~torch.eye(pairs.shape[1], dtype=torch.bool)
    return (error * pairs).sum((1, 2)) / pairs.sum((1, 2))
