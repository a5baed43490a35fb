"""CVQ: each code moves towards a latent of the batch; the less a code is used, the further it moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.distributed import gather_sharded
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.methods.base import Method, Step
from tavq_plugin.methods.codebook_table import learnt_table

ANCHORS = ("closest", "probrandom")
METRICS = ("l2", "cos")
# saved with a run, as an earlier release had others
DEFAULTS = {"anchor": "closest", "metric": "cos", "contrast": 0.0, "restarts": False}


class CVQMethod(Method):
    """Online Clustered Codebook (Zheng & Vedaldi, ICCV 2023), as its released code's README trains it (04864b7).

    Each code has a running usage N ← γ N + (1 − γ) n, where n is the share of the batch's latents that chose it. Its
    anchor is the batch's latent with the greatest cosine ("closest"). It moves by e ← (1 − α) e + α · anchor with
    α = exp(−10 K N / (1 − γ) − .001). The recipe's start on latents and its restarts are off: this is the method's own
    way to keep codes in use. The release's other settings are options: anchors drawn by the softmax of closeness
    ("probrandom"), and a contrast of each code's mean similarity to its nearest latents (latents / K of them, at least
    one) with the farthest half, over τ = .07, whose gradient reaches the codebook only.

    Differences from the release:

    - The host keeps its quantizer, losses and lookup. The README's cosine is then that of the anchors alone, while the
      release looks codes up by it too.
    - Codes move after the optimizer's step, not in the forward, and keep their Adam moments.
    - The contrast uses cosines, for which τ was chosen, also where anchors are chosen by distance.
    - With several processes, usage and anchors come from the latents of all, so every rank moves the codes alike.
    - The release's third anchor, "random", which keeps a pool of latents, is left out.
    - If the recipe settles the host first, codes start where the host put them, and are moved after the first step.

    Args:
        decay: γ of the running usage, 0 or more and below 1.
        anchor: Which latent a code moves towards: "closest", or one drawn by closeness, "probrandom".
        metric: Closeness for the anchors: "cos" or "l2".
        contrast: Weight of the contrastive loss; 0 leaves it out.
        temperature: τ of the contrastive loss.
        restarts: If true, the recipe's start on latents and restarts work beside the method's own moves.

    Raises:
        ValueError: A setting is out of its range, or the host's codebook is not a parameter.
    """

    name = "cvq"
    usage: Tensor  # k, running share of the latents

    def __init__(
        self,
        tokenizer: Tokenizer,
        corpus: Corpus,
        *,
        seed: int = 0,
        decay: float = 0.99,
        anchor: str = "closest",
        metric: str = "cos",
        contrast: float = 0.0,
        temperature: float = 0.07,
        restarts: bool = False,
    ) -> None:
        super().__init__(tokenizer, corpus, seed=seed)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be 0 or more and below 1, got {decay}")
        if anchor not in ANCHORS:
            raise ValueError(f'anchor={anchor!r}: give "closest" or "probrandom"')
        if metric not in METRICS:
            raise ValueError(f'metric={metric!r}: give "l2" or "cos"')
        if not contrast >= 0:
            raise ValueError(f"contrast must be 0 or more, got {contrast}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.decay, self.anchor, self.metric = decay, anchor, metric
        self.contrast, self.temperature = contrast, temperature
        *_, table = learnt_table(tokenizer, self.name)
        self.adapter = tokenizer.adapter
        self.register_buffer("usage", torch.zeros(len(table), device=table.device))
        self._draw = torch.Generator().manual_seed(seed)

    @classmethod
    def resolved_options(cls, options: Mapping[str, Any], saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The options with those that an earlier release had other defaults for."""
        return {**DEFAULTS, **{name: saved[name] for name in DEFAULTS if saved and name in saved}, **options}

    @classmethod
    def takes_restarts(cls, options: Mapping[str, Any]) -> bool:
        """Only if asked for: the method has its own."""
        return bool(options.get("restarts", DEFAULTS["restarts"]))

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The contrastive loss between codes and the batch's latents."""
        if self.contrast == 0:
            return {}
        latents = _flat_latents(step).detach()
        codebook = gather_sharded(self.adapter.codebook())
        assert codebook is not None  # `learnt_table` found it
        with torch.autocast(latents.device.type, enabled=False):
            loss = code_contrast(codebook.to(latents.dtype), latents, temperature=self.temperature)
        return {"contrast": self.contrast * loss}

    @torch.no_grad()
    def after_update(self, step: Step) -> None:
        """Update the usage and move every code towards its anchor; codes that are used often hardly move."""
        codebook = self.adapter.codebook()
        assert codebook is not None  # `learnt_table` found it
        if gather_sharded(codebook) is not codebook:
            raise RuntimeError("cvq cannot move a sharded codebook: train under DistributedDataParallel, not FSDP")
        latents = _latents_of_all_ranks(_flat_latents(step).to(codebook.dtype))
        chosen = torch.bincount(step.codes.final.indices.flatten(), minlength=len(codebook)).to(self.usage)
        if _ranks() > 1:
            dist.all_reduce(chosen)
        self.usage.lerp_(chosen / chosen.sum(), 1 - self.decay)
        alpha = torch.exp(-10 * len(codebook) * self.usage / (1 - self.decay) - 1e-3)
        draw = None
        if self.anchor == "probrandom":
            draw = torch.rand(len(codebook), generator=self._draw).to(codebook.device)
        moved = anchors(codebook, latents, draw, metric=self.metric)
        codebook.copy_(torch.lerp(codebook, moved, alpha[:, None].to(codebook.dtype)))

    def get_extra_state(self) -> Tensor:
        """State of the random generator that draws the anchors."""
        return self._draw.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Continue drawing from the saved state."""
        self._draw.set_state(state.cpu())


def anchors(codebook: Tensor, latents: Tensor, draw: Tensor | None, *, metric: str = "l2") -> Tensor:
    """One latent per code: the closest, or one drawn by the softmax over latents of closeness; k c, n c, k -> k c.

    Closeness is −|z − e|² or the cosine. `draw` holds one number in [0, 1) per code, which is looked up in the
    cumulative probabilities; without it, the closest latent is taken.
    """
    rows = max(1, 2**24 // len(latents))
    chosen = []
    for start in range(0, len(codebook), rows):
        codes = codebook[start : start + rows]
        if metric == "l2":
            # −|e|² is the same for all latents of a code
            closeness = 2 * codes @ latents.T - latents.square().sum(1)
        else:
            closeness = F.normalize(codes, dim=1) @ F.normalize(latents, dim=1).T
        if draw is None:
            place = closeness.argmax(1)
        else:
            cumulative = closeness.softmax(1).double().cumsum(1)
            drawn = draw[start : start + rows, None] * cumulative[:, -1:]
            place = torch.searchsorted(cumulative, drawn, right=True)[:, 0].clamp(max=len(latents) - 1)
        chosen.append(latents[place])
    return torch.cat(chosen)


def code_contrast(codebook: Tensor, latents: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Cross-entropy of each code's mean similarity to its nearest latents against the farthest; k c, n c -> scalar."""
    ordered = (F.normalize(codebook, dim=1) @ F.normalize(latents, dim=1).T / temperature).sort(1).values
    n = len(latents)
    nearest = ordered[:, -max(1, n // len(codebook)) :].mean(1, keepdim=True)
    return (torch.cat([nearest, ordered[:, : n // 2]], 1).logsumexp(1) - nearest[:, 0]).mean()


def _flat_latents(step: Step) -> Tensor:
    """The final level's latents, half precision raised to float32; -> (b h w) c."""
    latents = rearrange(step.codes.final.latent, "b c h w -> (b h w) c")
    return latents.float() if latents.dtype in (torch.float16, torch.bfloat16) else latents


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _latents_of_all_ranks(latents: Tensor) -> Tensor:
    """The latents of all processes, in rank order; n c -> (sum of n) c."""
    if _ranks() == 1:
        return latents
    sizes = [torch.zeros(1, dtype=torch.long, device=latents.device) for _ in range(_ranks())]
    dist.all_gather(sizes, sizes[0].new_tensor([len(latents)]))
    counts = [int(size) for size in sizes]
    padded = F.pad(latents, (0, 0, 0, max(counts) - len(latents))).contiguous()
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
