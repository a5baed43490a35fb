"""Held-out images that training has seen: the same file, or the same perceptual hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.io.file_hash import sha256_of


@dataclass(frozen=True)
class Leaks:
    """Which held-out images are in the training split as well; places in the held-out list."""

    same_file: tuple[int, ...]  # sha256 of the file
    same_hash: tuple[int, ...]  # dHash of the picture, and not the same file

    @property
    def all(self) -> set[int]:
        """Both kinds."""
        return {*self.same_file, *self.same_hash}

    def counts(self) -> dict[str, int]:
        """For a protocol."""
        return {"same_file": len(self.same_file), "same_perceptual_hash": len(self.same_hash)}


def find_leaks(train: Tensor, held_out: Tensor, train_files: Sequence[Path], held_out_files: Sequence[Path]) -> Leaks:
    """Compare two splits, as pictures and, where there are files, as files; n 3 h w, m 3 h w uint8."""
    known = {sha256_of(path) for path in train_files}
    files = [i for i, path in enumerate(held_out_files) if sha256_of(path) in known]
    seen = set(dhash(train).tolist()) - {0}  # 0: nothing but flat, as blank pictures are
    hashes = [i for i, value in enumerate(dhash(held_out).tolist()) if value in seen and i not in set(files)]
    return Leaks(tuple(files), tuple(hashes))


def dhash(images: Tensor) -> Tensor:
    """64 bits of a picture: where brightness rises from one cell of a 9 × 8 grid to the next; n 3 h w uint8 -> n.

    Pictures of one hash are the same one, or nearly, whatever their size or compression.

    >>> ramp = torch.arange(0, 180, 5, dtype=torch.uint8).expand(1, 3, 36, 36)
    >>> dhash(torch.cat([ramp, ramp.flip(3)])).tolist()
    [-1, 0]
    """
    grey = images.float().mul(torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    cells = F.interpolate(grey, (8, 9), mode="area")[:, 0]
    bits = (cells[..., 1:] > cells[..., :-1] + 1e-3).flatten(1).long()
    return (bits << torch.arange(64)).sum(1)
