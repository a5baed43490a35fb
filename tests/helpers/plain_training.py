"""A plain autoencoder around a VQ, and what the tests of environments do with it, also in other processes."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from helpers.conformance import IMAGES, texts
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tavq_plugin as tavq
from tavq_plugin.types import Quantized


class Codebook(nn.Module):
    """Nearest codes, straight-through; b c h w -> (b c h w, b h w, loss)."""

    def __init__(self, k: int = 16, c: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(k, c)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        indices = torch.cdist(z.flatten(2).mT, self.embedding.weight[None]).argmin(-1).view(len(z), *z.shape[2:])
        q = rearrange(self.embedding(indices), "b h w c -> b c h w")
        loss = ((q - z.detach()) ** 2).mean() + 0.25 * ((q.detach() - z) ** 2).mean()
        return z + (q - z).detach(), indices, loss


class Plain(nn.Module):
    """Four convolutions, a VQ and a decoder; checkpointed: None, or `use_reentrant` of the encoder's checkpoint."""

    def __init__(self, checkpointed: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.fine = nn.Sequential(nn.Conv2d(8, 8, 4, 2, 1), nn.SiLU())
        self.mid = nn.Sequential(nn.Conv2d(8, 8, 4, 2, 1), nn.SiLU())
        self.last = nn.Conv2d(8, 4, 4, 2, 1)
        self.vq = Codebook()
        self.up = nn.Sequential(nn.Upsample(scale_factor=8), nn.Conv2d(4, 3, 3, padding=1))
        self.checkpointed = checkpointed

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(images)
        for part in (self.fine, self.mid):
            x = part(x) if self.checkpointed is None else checkpoint(part, x, use_reentrant=self.checkpointed)
        q, _, loss = self.vq(self.last(x))
        return self.up(q), loss


def parse(z: Tensor, output: tuple) -> Quantized:
    return Quantized(output[0], output[1], output[2])


DESCRIPTION: dict[str, Any] = dict(taps=["fine", "mid"], quantizer="vq", parse=parse)


def attached(host: nn.Module, seed: int = 0, **settings: Any) -> tuple[torch.optim.Optimizer, tavq.Attachment]:
    """Adam and an attachment on a plain host, its heads drawn from a seed; no contrast, which joins the ranks.

    Without `balance` it is a weighted sum.
    """
    optimizer = torch.optim.Adam(host.parameters(), lr=1e-2)
    torch.manual_seed(seed)
    return optimizer, tavq.attach(
        host, optimizer, text_dim=6, **DESCRIPTION, **{"alignment": {"contrast": 0.0}, "balance": None} | settings
    )


def own_loss(output: tuple[Tensor, Tensor], images: Tensor = IMAGES) -> Tensor:
    """The host's own loss: L1 and the quantizer's."""
    return (output[0] - images).abs().mean() + output[1]


def gradients(*modules: nn.Module) -> list[Tensor]:
    """The gradient of every parameter that has one."""
    found = [p.grad.clone() for module in modules for p in module.parameters() if p.grad is not None]
    assert found
    return found


def one_step(host: nn.Module, align: nn.Module, call: nn.Module | None = None) -> list[Tensor]:
    """Gradients of the host and the heads after one forward and backward."""
    loss = own_loss((host if call is None else call)(IMAGES)) + align(texts())
    loss.backward()
    return gradients(host, align)


def rank_batch(rank: int, *, uneven: bool = False, without_text: bool = False) -> tuple[Tensor, dict[str, tavq.Units]]:
    """Images and texts of a rank; uneven: rank 1 has half of them; without_text: rank 1 has no text."""
    images, batch = IMAGES + 0.1 * rank, texts()
    if rank == 1 and uneven:
        images, batch = images[:1], {name: tavq.Units(u.embeddings[:1], u.mask[:1]) for name, u in batch.items()}
    if rank == 1 and without_text:
        batch = {name: tavq.Units(u.embeddings, torch.zeros_like(u.mask)) for name, u in batch.items()}
    return images, batch


def in_one_process(steps: int = 5, settings: dict[str, Any] | None = None, **batches: bool) -> dict[str, Tensor]:
    """The parameters that two ranks should end with; each step takes the mean of their losses."""
    host = Plain()
    optimizer, align = attached(host, **settings or {})
    for _ in range(steps):
        optimizer.zero_grad()
        for rank in range(2):
            images, batch = rank_batch(rank, **batches)
            ((own_loss(host(images), images) + align(batch)) / 2).backward()
        optimizer.step()
    return state(host, align)


def state(*modules: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, gathered if they are sharded."""
    named = {f"{i}.{name}": p.detach() for i, module in enumerate(modules) for name, p in module.named_parameters()}
    return {name: (p.full_tensor() if hasattr(p, "full_tensor") else p).clone() for name, p in named.items()}
