"""Whitening: unit embeddings without their mean and with equal spread in all directions, fitted on a whole store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tavq_plugin.io.atomic import save_tensors
from tavq_plugin.text import shard_file as shards
from tavq_plugin.text.manifest import NAME, WHITENING, Manifest, finished, shard_path, shard_paths
from tavq_plugin.text.store import TextStore

ROWS = 65536  # of a table at once, so that no float64 copy of a large one is made


@dataclass(frozen=True)
class Whitening:
    """x → (x - mean) · matrix, then L2-normalised; matrix is the inverse root of the shrunk covariance.

    Cosines of raw text embeddings lie in a narrow cone; here a unit's distance from others tells more.
    """

    mean: Tensor  # d float32
    matrix: Tensor  # d d float32, symmetric

    @classmethod
    def fit(cls, tables: Iterable[tuple[Tensor, Tensor]], shrink: float = 0.1) -> Whitening:
        """From tables u d and how often each row is used, u; one table at a time.

        `shrink` mixes the covariance with its own mean variance in every direction: 0 trusts a small corpus fully.
        ValueError where nothing is used.
        """
        if not 0 <= shrink <= 1:
            raise ValueError(f"shrink={shrink}: give 0 (the covariance as it is) to 1 (only the mean is taken away)")
        total, first, second = 0.0, 0.0, 0.0
        for table, uses in tables:
            for start in range(0, len(table), ROWS):
                rows, weights = table[start : start + ROWS].double(), uses[start : start + ROWS].double()
                total += weights.sum()
                first += weights @ rows
                second += (rows * weights[:, None]).T @ rows
        if not total:
            raise ValueError("no units to fit a whitening on: the store has no text")
        mean = first / total
        covariance = second / total - mean[:, None] * mean
        width = len(mean)
        variance = covariance.trace() / width
        covariance = (1 - shrink) * covariance + shrink * variance * torch.eye(width, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(covariance)
        roots = values.clamp(min=1e-6 * variance.item() or 1.0).rsqrt()  # directions without any spread stay finite
        return cls(mean.float(), (vectors * roots @ vectors.T).float())

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows n d of any dtype, whitened; n d of the same dtype."""
        return normalize((rows.float() - self.mean) @ self.matrix, dim=-1).to(rows.dtype)

    @property
    def name(self) -> str:
        """Equal for equal numbers: stands in the fingerprint of a whitened store."""
        content = self.mean.numpy().tobytes() + self.matrix.numpy().tobytes()
        return f"whitened-{hashlib.sha256(content).hexdigest()[:16]}"

    def save(self, folder: Path) -> None:
        """Beside the store's shards, whole or not at all."""
        save_tensors({"mean": self.mean, "matrix": self.matrix}, folder / WHITENING)

    @classmethod
    def load(cls, folder: str | Path) -> Whitening:
        """Of a whitened store; ValueError where it is missing, or not the one that made the store."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        fingerprint = Manifest.read(folder).fingerprint
        try:
            found = cls(**load_file(Path(folder) / WHITENING))
        except (FileNotFoundError, SafetensorError, TypeError) as error:
            raise ValueError(
                f"{folder} has no whitening ({error}): give a store that tavq store whiten made"
            ) from error
        if not fingerprint.endswith(f"|{found.name}"):
            raise ValueError(
                f"{Path(folder) / WHITENING} did not make this store ({fingerprint}): whiten the first one again"
            )
        return found


def whiten(store: str | Path, out: str | Path, *, like: str | Path | None = None, shrink: float = 0.1) -> Manifest:
    """A new store of the same units, whitened; `like`: by the whitening of another store, for held-out texts.

    ValueError where `store` is whitened already or `like` is of another encoder; FileExistsError where `out` is there.
    """
    source, out = Manifest.read(store), Path(out)
    paths = finished(store, source)
    if "|whitened-" in source.fingerprint:
        raise ValueError(f"{store} is whitened already: give the store it was made of")
    if (out / NAME).exists() or (out / WHITENING).exists() or shard_paths(out):
        raise FileExistsError(f"{out} holds a store already: give a new folder")
    if like is None:
        whitening = Whitening.fit((_table_and_uses(path) for path in paths), shrink)
    else:
        whitening = Whitening.load(like)
        Manifest(Manifest.read(like).fingerprint.removesuffix(f"|{whitening.name}")).same(source.fingerprint, store)
    fingerprint = f"{source.fingerprint}|{whitening.name}"
    whitening.save(out)
    for number, path in enumerate(paths):
        part, about = TextStore.load(path), shards.metadata(path)
        table = torch.cat([whitening(rows) for rows in part.table.split(ROWS)] or [part.table])
        part = replace(part, table=table, fingerprint=fingerprint).centred_on(range(len(part)))
        shards.write(shard_path(out, number), part.shard(records=about.get("records", "")))
    made = replace(source, fingerprint=fingerprint)
    made.write(out)
    return made


def _table_and_uses(path: Path) -> tuple[Tensor, Tensor]:
    part = TextStore.load(path)
    return part.table, sum(torch.bincount(r.ids, minlength=len(part.table)) for r in part.lists.values())
