"""Find held-out images that are also in the training split, by file or by perceptual hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.io.file_hash import sha256_of


@dataclass(frozen=True)
class Leakage:
    """The held-out images that are also in the training split, by position in the held-out list."""

    same_file: tuple[int, ...]  # equal SHA-256 of the file
    same_hash: tuple[int, ...]  # equal dHash, but another file

    @property
    def all(self) -> set[int]:
        """Both kinds."""
        return {*self.same_file, *self.same_hash}

    def counts(self) -> dict[str, int]:
        """How many of each kind, for a protocol."""
        return {"same_file": len(self.same_file), "same_perceptual_hash": len(self.same_hash)}


def find_leakage(
    train: Tensor, held_out: Tensor, train_files: Sequence[Path], held_out_files: Sequence[Path]
) -> Leakage:
    """Compare two splits by their pictures and, if given, by their files; n 3 h w, m 3 h w uint8."""
    known = {sha256_of(path) for path in train_files}
    files = [i for i, path in enumerate(held_out_files) if sha256_of(path) in known]
    train_hashes = set(dhash(train).tolist()) - {0}  # 0 is the hash of every blank picture
    hashes = [i for i, value in enumerate(dhash(held_out).tolist()) if value in train_hashes and i not in set(files)]
    return Leakage(tuple(files), tuple(hashes))


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
