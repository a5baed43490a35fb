"""The codes that a run makes of a page's images, and what its decoder makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import read_json
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.pixels import to_float, to_uint8
from tavq_plugin.side_effects import eval_without_trace
from tavq_plugin.use.run import Run

BATCH = 32  # images
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExploredRun:
    """A finished run, as a page shows it."""

    name: str
    seed: int
    tokenizer: Tokenizer
    align: TextAlignment | None  #: None for a run without heads
    resolution: int
    about: Mapping[str, Any]  #: method, steps, host
    history: Sequence[Mapping[str, float]]  #: one row per logged step; () if the run keeps none

    @property
    def label(self) -> str:
        """Name and seed."""
        return f"{self.name}, seed {self.seed}"


@dataclass(frozen=True)
class RunCodes:
    """The codes of all images of a page. Lists have one entry per level, fine to coarse."""

    indices: Sequence[Tensor]  #: e h w int64
    distances: Sequence[Tensor]  #: e h w, squared distance of the latent from its code
    quantized: Sequence[Tensor]  #: n c h w, of the shown images
    table: Sequence[Tensor | None]  #: k c; None if the host shows no codebook
    reconstructions: Tensor | None  #: n 3 r r uint8; None if the host cannot decode
    not_decoded: str  #: why, else ""


def explored(run: Run) -> ExploredRun:
    """What a page shows of a run."""
    history = read_json(run.folder / "history.json", strict=False) or {}
    about = {"method": run.recipe.method, "steps": run.recipe.steps, "host": run.recipe.host.target}
    return ExploredRun(
        run.name, run.seed, run.tokenizer, run.align, run.recipe.resolution, about, history.get("history", ())
    )


def codes_of(
    run: ExploredRun, images: Tensor, shown: int, *, progress: Progress = lambda name, done, total: None
) -> RunCodes:
    """The codes of images, e 3 r r uint8, and the reconstructions of the first `shown`; the run stays as it was.

    Raises FloatingPointError if codes are not finite.
    """
    tokenizer, device = run.tokenizer, next(run.tokenizer.parameters()).device
    parts: list[list[tuple[Tensor, Tensor]]] = []
    quantized: list[list[Tensor]] = []
    decoded, reason = list[Tensor](), tokenizer.decode_fails
    with eval_without_trace(tokenizer):
        for start in range(0, len(images), BATCH):
            codes = tokenizer.encode(to_float(images[start : start + BATCH]).to(device))
            if not codes.final.quantized.isfinite().all():
                raise FloatingPointError(f"the codes of {run.label} hold NaN or infinity: the run is broken")
            parts.append([(level.indices.cpu(), _distance(level.latent, level.quantized)) for level in codes.levels])
            if start < shown:
                quantized.append([level.quantized[: shown - start].cpu() for level in codes.levels])
                if not reason:
                    try:
                        decoded.append(to_uint8(tokenizer.decode(codes))[: shown - start].cpu())
                    except NotImplementedError as error:
                        reason = str(error)
            progress(run.label, min(start + BATCH, len(images)), len(images))
    by_level = list(zip(*parts, strict=True))
    return RunCodes(
        [torch.cat([indices for indices, _ in level]) for level in by_level],
        [torch.cat([distance for _, distance in level]) for level in by_level],
        [torch.cat(level) for level in zip(*quantized, strict=True)],
        _tables(tokenizer, len(by_level)),
        None if reason else torch.cat(decoded),
        reason,
    )


def _distance(latent: Tensor, quantized: Tensor) -> Tensor:
    """Squared distance at each place; b c h w, b c h w -> b h w. 0 where the shapes differ (a host of its own kind)."""
    if latent.shape != quantized.shape:
        return quantized.new_zeros(quantized[:, 0].shape).cpu()
    return (latent - quantized).square().sum(1).cpu()


def _tables(tokenizer: Tokenizer, levels: int) -> list[Tensor | None]:
    """The codebook of each level, k c."""
    shared = tokenizer.adapter.codebook()
    host = None if shared is None else shared.detach().float().cpu()
    own: list[Tensor | None] = [
        table.get_parameter("weight").detach().float().cpu() for table in tokenizer.hierarchy.own
    ]
    return [*(own or [host] * (levels - 1)), host]
