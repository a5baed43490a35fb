"""Whiten the units of a store: zero mean, and equal variance in all directions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tavq_plugin.io.atomic import save_tensors
from tavq_plugin.text.manifest import (
    MANIFEST_FILE,
    WHITENING_FILE,
    Manifest,
    finished_shard_paths,
    shard_path,
    shard_paths,
)
from tavq_plugin.text.shard_file import shard_metadata, write_shard
from tavq_plugin.text.store import TextStore

ROWS = 65536  # converted at once, so that no float64 copy of a large table is made


@dataclass(frozen=True)
class Whitening:
    """x → (x - mean) · matrix, then L2-normalised; matrix is the inverse root of the shrunk covariance.

    Raw text embeddings lie in a narrow cone; after whitening, their cosines differ more.
    """

    mean: Tensor  # d float32
    matrix: Tensor  # d d float32, symmetric

    @classmethod
    def fit(cls, tables: Iterable[tuple[Tensor, Tensor]], shrink: float = 0.1) -> Whitening:
        """Fit on pairs: a table u d, and how often each row is used, u. One table at a time is in memory.

        The covariance becomes (1 - shrink) · covariance + shrink · mean variance · identity; a small corpus needs a
        larger `shrink`. Raises ValueError if `shrink` is not in 0 to 1, or no row is used.
        """
        if not 0 <= shrink <= 1:
            raise ValueError(
                f"shrink={shrink} is out of range: give 0 (the covariance as it is) to 1 (only the mean is subtracted)"
            )
        total: Any = 0.0  # tensors, after the first table
        first: Any = 0.0
        second: Any = 0.0
        for table, uses in tables:
            for start in range(0, len(table), ROWS):
                rows, weights = table[start : start + ROWS].double(), uses[start : start + ROWS].double()
                total += weights.sum()
                first += weights @ rows
                second += (rows * weights[:, None]).T @ rows
        if not total:
            raise ValueError("there are no units to fit a whitening on: give a store with texts")
        mean = first / total
        covariance = second / total - mean[:, None] * mean
        width = len(mean)
        variance = covariance.trace() / width
        covariance = (1 - shrink) * covariance + shrink * variance * torch.eye(width, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(covariance)
        roots = values.clamp(min=1e-6 * variance.item() or 1.0).rsqrt()  # finite in directions without variance
        return cls(mean.float(), (vectors * roots @ vectors.T).float())

    def __call__(self, rows: Tensor) -> Tensor:
        """Whitened rows of the same dtype; n d -> n d."""
        return normalize((rows.float() - self.mean) @ self.matrix, dim=-1).to(rows.dtype)

    @property
    def name(self) -> str:
        """A hash of mean and matrix; part of a whitened store's fingerprint."""
        content = self.mean.numpy().tobytes() + self.matrix.numpy().tobytes()
        return f"whitened-{hashlib.sha256(content).hexdigest()[:16]}"

    def save(self, folder: Path) -> None:
        """Write it into the store's folder, atomically."""
        save_tensors({"mean": self.mean, "matrix": self.matrix}, folder / WHITENING_FILE)

    @classmethod
    def load(cls, folder: str | Path) -> Whitening:
        """The whitening of a whitened store; raises ValueError if it is missing, or another one made the store."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        fingerprint = Manifest.read(folder).fingerprint
        try:
            found = cls(**load_file(Path(folder) / WHITENING_FILE))
        except (FileNotFoundError, SafetensorError, TypeError) as error:
            raise ValueError(f"{folder} has no whitening ({error}): give a store made by tavq store whiten") from error
        if not fingerprint.endswith(f"|{found.name}"):
            raise ValueError(
                f"{Path(folder) / WHITENING_FILE} did not make this store ({fingerprint}): whiten the original again"
            )
        return found


def whiten(store: str | Path, out: str | Path, *, like: str | Path | None = None, shrink: float = 0.1) -> Manifest:
    """Write a new store with the same units, whitened.

    Args:
        store: Folder of a finished store.
        out: Folder of the new store.
        like: A whitened store whose whitening is used; for held-out texts, give the training store's. Default: fit one.
        shrink: As in `Whitening.fit`.

    Raises:
        ValueError: `store` is whitened already, or `like` has another encoder.
        FileExistsError: `out` holds a store.
    """
    source, out = Manifest.read(store), Path(out)
    paths = finished_shard_paths(store, source)
    if "|whitened-" in source.fingerprint:
        raise ValueError(f"{store} is whitened already: give the original store")
    if (out / MANIFEST_FILE).exists() or (out / WHITENING_FILE).exists() or shard_paths(out):
        raise FileExistsError(f"{out} already holds a store: give a new folder")
    if like is None:
        whitening = Whitening.fit((_table_and_uses(path) for path in paths), shrink)
    else:
        whitening = Whitening.load(like)
        Manifest(Manifest.read(like).fingerprint.removesuffix(f"|{whitening.name}")).require_fingerprint(
            source.fingerprint, store
        )
    fingerprint = f"{source.fingerprint}|{whitening.name}"
    whitening.save(out)
    for number, path in enumerate(paths):
        part, metadata = TextStore.load(path), shard_metadata(path) or {}
        table = torch.cat([whitening(rows) for rows in part.table.split(ROWS)] or [part.table])
        part = replace(part, table=table, fingerprint=fingerprint).centred_on(range(len(part)))
        write_shard(shard_path(out, number), part.shard(records=metadata.get("records", "")))
    made = replace(source, fingerprint=fingerprint)
    made.write(out)
    return made


def _table_and_uses(path: Path) -> tuple[Tensor, Tensor]:
    """A shard's table u d, and how often each row is used, u."""
    part = TextStore.load(path)
    rows = torch.cat([ragged.ids for ragged in part.lists.values()])
    return part.table, torch.bincount(rows, minlength=len(part.table))
