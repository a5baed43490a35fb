"""CVQ: codes that are hardly used move onto latents of the batch, by how little they are used."""

from __future__ import annotations

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

METRICS = ("l2", "cos")


class CVQMethod(Method):
    """Online Clustered Codebook (Zheng & Vedaldi, ICCV 2023; formulas as in the released `quantise.py`, 04864b7).

    The paper's: a running usage N ← γ N + (1 − γ) n, n the share of the batch's latents that chose a code; an anchor a
    code, one of the batch's latents drawn by the softmax of its closeness ("probrandom"); and the running average
    e ← (1 − α) e + α · anchor with α = exp(−10 K N / (1 − γ) − .001). Its contrastive loss: a code's mean similarity
    to the latents nearest it (N / K of them, one at least) against the farthest half, over τ = .07; it reaches the
    codebook alone.

    Our reading: the host's own quantizer, losses and lookup stay; codes move after the optimizer's step rather than
    in the forward, and Adam's moments of theirs stay; anchors are drawn by the host's distance ("l2"; "cos" is
    the release's default, which then also looks up so), and the contrast is of cosines, which τ is made for. Over
    several processes usage is of all latents and anchors are drawn from all of them, so every rank moves the same
    codes alike. Raises ValueError for a host whose codebook is no parameter.
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
        metric: str = "l2",
        contrast: float = 1.0,
        temperature: float = 0.07,
    ) -> None:
        super().__init__(tokenizer, corpus, seed=seed)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be 0 or more and below 1, got {decay}")
        if metric not in METRICS:
            raise ValueError(f'metric={metric!r}: give "l2" or "cos"')
        if not contrast >= 0:
            raise ValueError(f"contrast must be 0 or more, got {contrast}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.decay, self.metric, self.contrast, self.temperature = decay, metric, contrast, temperature
        *_, table = learnt_table(tokenizer, self.name)
        self.adapter = tokenizer.adapter
        self.register_buffer("usage", torch.zeros(len(table), device=table.device))
        self._draw = torch.Generator().manual_seed(seed)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The contrast between codes and the batch's latents."""
        if self.contrast == 0:
            return {}
        latents = _flat(step).detach()
        codebook = gather_sharded(self.adapter.codebook()).to(latents.dtype)
        with torch.autocast(latents.device.type, enabled=False):
            return {"contrast": self.contrast * code_contrast(codebook, latents, temperature=self.temperature)}

    @torch.no_grad()
    def after_update(self, step: Step) -> None:
        """Count what was used and move every code, the used ones hardly."""
        codebook = self.adapter.codebook()
        if gather_sharded(codebook) is not codebook:
            raise RuntimeError("cvq cannot move a sharded codebook: train under DistributedDataParallel, not FSDP")
        latents = _over_ranks(_flat(step).to(codebook.dtype))
        chosen = torch.bincount(step.codes.final.indices.flatten(), minlength=len(codebook)).to(self.usage)
        if _ranks() > 1:
            dist.all_reduce(chosen)
        self.usage.lerp_(chosen / chosen.sum(), 1 - self.decay)
        draw = torch.rand(len(codebook), generator=self._draw).to(codebook.device)
        alpha = torch.exp(-10 * len(codebook) * self.usage / (1 - self.decay) - 1e-3)
        moved = anchors(codebook, latents, draw, metric=self.metric)
        codebook.copy_(torch.lerp(codebook, moved, alpha[:, None].to(codebook.dtype)))

    def get_extra_state(self) -> Tensor:
        """The anchors' random generator."""
        return self._draw.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on drawing where the saved one was."""
        self._draw.set_state(state.cpu())


def anchors(codebook: Tensor, latents: Tensor, draw: Tensor, *, metric: str = "l2") -> Tensor:
    """A latent for each code, by the softmax over the latents of −|z − e|² or of the cosine; k c, n c, k -> k c.

    draw: a number in [0, 1) for each code, the place in its cumulative probabilities.
    """
    rows = max(1, 2**24 // len(latents))
    chosen = []
    for codes, part in zip(codebook.split(rows), draw.split(rows), strict=True):
        if metric == "l2":
            closeness = 2 * codes @ latents.T - latents.square().sum(1)  # less |e|², the same for all latents
        else:
            closeness = F.normalize(codes, dim=1) @ F.normalize(latents, dim=1).T
        cumulative = closeness.softmax(1).double().cumsum(1)
        place = torch.searchsorted(cumulative, part[:, None] * cumulative[:, -1:], right=True)
        chosen.append(latents[place[:, 0].clamp(max=len(latents) - 1)])
    return torch.cat(chosen)


def code_contrast(codebook: Tensor, latents: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Cross-entropy of each code's nearest latents, averaged, against its farthest half; k c, n c -> scalar."""
    ordered = (F.normalize(codebook, dim=1) @ F.normalize(latents, dim=1).T / temperature).sort(1).values
    n = len(latents)
    nearest = ordered[:, -max(1, n // len(codebook)) :].mean(1, keepdim=True)
    return (torch.cat([nearest, ordered[:, : n // 2]], 1).logsumexp(1) - nearest[:, 0]).mean()


def _flat(step: Step) -> Tensor:
    latents = rearrange(step.codes.final.latent, "b c h w -> (b h w) c")
    return latents.float() if latents.dtype in (torch.float16, torch.bfloat16) else latents


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _over_ranks(latents: Tensor) -> Tensor:
    """The latents of all processes, in the ranks' order; n c -> (sum of n) c."""
    if _ranks() == 1:
        return latents
    sizes = [torch.zeros(1, dtype=torch.long, device=latents.device) for _ in range(_ranks())]
    dist.all_gather(sizes, sizes[0].new_tensor([len(latents)]))
    counts = [int(size) for size in sizes]
    padded = F.pad(latents, (0, 0, 0, max(counts) - len(latents))).contiguous()
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
