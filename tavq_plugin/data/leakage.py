"""Find held-out images that are also in the training split, and training images of the same burst as a held-out one."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.io.file_hash import sha256_of

THUMBNAIL = 8  # cells per side
ALIKE_PICTURES, ALIKE_TEXTS = 0.93, 0.5  # one burst: thumbnails correlate, or texts share words, by at least this
ALIKE_BOTH = (0.75, 0.25)  # one burst too: both by at least this
DETAIL_CELLS = 16  # cells per side of what confirms that pictures are alike
ALIKE_DETAILS, ALIKE_DETAILS_BOTH = 0.7, 0.5  # by at least this, details correlate; the second if texts are alike too
ALIKE_LEVELS = 3  # of 255: pictures without details are alike if no cell differs by more
MIN_WORDS = 8  # shorter texts, such as names of classes, say nothing about bursts
COMMON = 0.3  # words in a larger share of all texts are not compared


@dataclass(frozen=True)
class Leakage:
    """The held-out images that are also in the training split, by position in the held-out list."""

    same_file: tuple[int, ...]  # equal SHA-256 of the file
    same_hash: tuple[int, ...]  # equal dHash and alike details, but another file

    @property
    def all(self) -> set[int]:
        """Both kinds."""
        return {*self.same_file, *self.same_hash}

    def counts(self) -> dict[str, int]:
        """How many of each kind, for a protocol."""
        return {"same_file": len(self.same_file), "same_perceptual_hash": len(self.same_hash)}


def find_leakage(
    train: Tensor, held_out: Tensor, train_files: Sequence[Path | bytes], held_out_files: Sequence[Path | bytes]
) -> Leakage:
    """Compare two splits by their pictures and, if given, by their files; n 3 h w, m 3 h w uint8."""
    known = {_sha256(file) for file in train_files}
    files = [i for i, path in enumerate(held_out_files) if _sha256(path) in known]
    alike: dict[int, list[int]] = defaultdict(list)  # hash → training images
    for i, value in enumerate(dhash(train).tolist()):
        if value:  # 0 is the hash of every blank picture
            alike[value].append(i)
    copied = set(files)
    hashes = [
        i
        for i, value in enumerate(dhash(held_out).tolist())
        if value in alike and i not in copied and _same_picture(held_out[i], train[alike[value]])
    ]
    return Leakage(tuple(files), tuple(hashes))


def _same_picture(image: Tensor, others: Tensor) -> bool:
    """Whether a picture is one of the others by its details, or without any by its pixels; 3 h w, n 3 h w uint8."""
    details = _details(torch.cat([image[None], others]))
    if (details[1:] @ details[0] >= ALIKE_DETAILS).any():
        return True
    cells = F.interpolate(torch.cat([image[None], others]).float(), (DETAIL_CELLS, DETAIL_CELLS), mode="area")
    return bool(((cells[1:] - cells[0]).abs().amax((1, 2, 3)) <= ALIKE_LEVELS).any())


def _sha256(file: Path | bytes) -> str:
    return hashlib.sha256(file).hexdigest() if isinstance(file, bytes) else sha256_of(file)


def dhash(images: Tensor) -> Tensor:
    """64-bit hash of a picture: where brightness rises along the rows of a 9 × 8 grid; n 3 h w uint8 -> n int64.

    Pictures with equal hashes are equal or nearly so, whatever their size or compression.

    >>> ramp = torch.arange(0, 180, 5, dtype=torch.uint8).expand(1, 3, 36, 36)
    >>> dhash(torch.cat([ramp, ramp.flip(3)])).tolist()
    [-1, 0]
    """
    grey = images.float().mul(torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    cells = F.interpolate(grey, (8, 9), mode="area")[:, 0]
    bits = (cells[..., 1:] > cells[..., :-1] + 1e-3).flatten(1).long()
    return (bits << torch.arange(64)).sum(1)


def burst_members(images: Tensor, texts: Sequence[str], others: Tensor, other_texts: Sequence[str]) -> set[int]:
    """Positions of the images that belong to a burst of one of the others; n 3 h w uint8, n, m 3 h w uint8, m.

    A burst is several pictures of one event. Two images are counted as such if the colours of their 8 × 8 thumbnails
    correlate at .93, or the words of their texts overlap by half (Jaccard), or both are alike to a lesser degree (.75
    and a quarter). Details confirm that pictures are alike (.7, or .5 if texts are alike too): the vignette or the
    background of one camera is no evidence. Blank pictures and texts of fewer than 8 words are like no other.
    """
    if not len(images) or not len(others):
        return set()
    pictures, other_pictures = _thumbnails(images), _thumbnails(others)
    details, other_details = _details(images), _details(others)
    words, other_words = _word_rows(texts, other_texts)
    sizes, other_sizes = (torch.from_numpy(side.sum(1)).flatten() for side in (words, other_words))
    found: set[int] = set()
    for start in range(0, len(images), 500):
        rows = slice(start, start + 500)
        picture = pictures[rows] @ other_pictures.T
        shared = torch.from_numpy((words[rows] @ other_words.T).toarray())
        text = shared / (sizes[rows, None] + other_sizes - shared).clamp(min=1)
        detail = details[rows] @ other_details.T
        alike = ((picture >= ALIKE_PICTURES) & (detail >= ALIKE_DETAILS)) | (text >= ALIKE_TEXTS)
        alike |= (picture >= ALIKE_BOTH[0]) & (detail >= ALIKE_DETAILS_BOTH) & (text >= ALIKE_BOTH[1])
        found |= {start + i for i in alike.any(1).nonzero().flatten().tolist()}
    return found


def _thumbnails(images: Tensor) -> Tensor:
    """Centred colours of 8 × 8 cells, length 1, or 0 for a picture without contrast; n 3 h w uint8 -> n 192."""
    cells = [F.interpolate(part.float(), (THUMBNAIL, THUMBNAIL), mode="area").flatten(1) for part in images.split(500)]
    centred = torch.cat(cells)
    centred = centred - centred.mean(1, keepdim=True)
    return torch.where(centred.std(1, keepdim=True) > 1, F.normalize(centred, dim=1), 0.0)


def _details(images: Tensor) -> Tensor:
    """Colours of 16 × 16 cells without what a quadratic surface explains, length 1; n 3 h w uint8 -> n 768.

    0 for a picture without details. The surface takes a vignette, an even background and slow gradients along.
    """
    line = torch.linspace(-1, 1, DETAIL_CELLS)
    y, x = torch.meshgrid(line, line, indexing="ij")
    surfaces = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], dim=-1).flatten(0, 1)
    basis = torch.linalg.qr(surfaces).Q
    size = (DETAIL_CELLS, DETAIL_CELLS)
    cells = torch.cat([F.interpolate(part.float(), size, mode="area").flatten(2) for part in images.split(500)])
    rest = (cells - cells @ basis @ basis.T).flatten(1)
    return torch.where(rest.std(1, keepdim=True) > 1, F.normalize(rest, dim=1), 0.0)


def _word_rows(*sides: Sequence[str]) -> list[Any]:
    """Which words each text has, as sparse 0/1 rows: without common words, and empty for a short text."""
    from scipy.sparse import csr_array

    distinct = [[set(re.findall(r"\w+", text.casefold())) for text in texts] for texts in sides]
    frequency = Counter(word for side in distinct for words in side for word in words)
    limit = max(1, COMMON * sum(map(len, sides)))
    column = {word: i for i, word in enumerate(word for word, count in frequency.items() if count <= limit)}
    rows = []
    for side in distinct:
        ids = [[column[word] for word in words if word in column] for words in side]
        ids = [row if len(row) >= MIN_WORDS else [] for row in ids]
        starts = [0, *accumulate(map(len, ids))]
        flat = [i for row in ids for i in row]
        rows.append(csr_array(([1.0] * len(flat), flat, starts), shape=(len(side), max(1, len(column)))))
    return rows
