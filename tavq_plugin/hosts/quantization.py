"""Find the nearest codes, choose where their gradient goes, and compute the quantization loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from tavq_plugin.types import GradTo


def nearest(latent: Tensor, codebook: Tensor, *, chunk: int | None = None) -> Tensor:
    """Index of the nearest code at each place; b c h w, k c -> b h w.

    Runs without gradient, in the latent's precision but at least float32. `chunk` distances are computed at a time,
    all in one buffer; by default as many as fit a CPU's cache, or fill a GPU (`rows_at_a_time`).

    >>> nearest(torch.tensor([0.1, 0.9]).view(1, 1, 1, 2), torch.tensor([[0.0], [1.0]]))
    tensor([[[0, 1]]])
    """
    b, _, h, _ = latent.shape
    with torch.no_grad(), torch.autocast(latent.device.type, enabled=False):
        flat = rearrange(latent, "b c h w -> (b h w) c")
        if flat.dtype in (torch.float16, torch.bfloat16):
            flat = flat.float()
        codebook = codebook.to(flat.dtype)
        offset = (codebook**2).sum(1)
        size = len(codebook)
        rows = max(1, chunk // size) if chunk else rows_at_a_time(size, on_cpu=flat.is_cpu)
        # One buffer for all: freed and allocated anew, small results between them keep a CPU's heap from using it again
        buffer = flat.new_empty(min(rows, len(flat)), size)
        found = [
            _argmin(torch.addmm(offset, part, codebook.T, alpha=-2, out=buffer[: len(part)]))
            for part in flat.split(rows)
        ]
        return rearrange(torch.cat(found), "(b h w) -> b h w", b=b, h=h)


def rows_at_a_time(codebook_size: int, *, on_cpu: bool) -> int:
    """How many latent vectors `nearest` compares with the codebook at a time.

    As many as fit a CPU's cache, or fill a GPU; but at least 64 on a CPU while their distances take at most 256 MB,
    because fewer make a product of matrices as slow as one of vectors: 8 times, for 262,144 codes of width 256.
    """
    if not on_cpu:
        return max(1, 2**24 // codebook_size)
    return max(1, 2**18 // codebook_size, min(64, 2**26 // codebook_size))


def _argmin(distances: Tensor) -> Tensor:
    """Index of each row's minimum; n k -> n. On a CPU by numpy, whose argmin is many times faster than torch's."""
    if distances.is_cpu and not torch.compiler.is_compiling():
        return torch.from_numpy(distances.numpy().argmin(1))
    return distances.argmin(1)


def with_gradient(latent: Tensor, vectors: Tensor, grad_to: GradTo) -> Tensor:
    """Exactly the value of `vectors`, with gradient to the latent, the codebook or both; 2 × b c h w -> b c h w.

    "encoder" is the straight-through estimator: the codebook gets no gradient.
    """
    if grad_to == "codebook":
        return vectors
    straight = latent - latent.detach()  # exactly 0, gradient 1
    return (vectors.detach() if grad_to == "encoder" else vectors) + straight


def pool(codes: Tensor, size: int) -> Tensor:
    """Average over size × size windows, smaller at the far edge if they do not fit; b c (h s) (w s) -> b c h w.

    >>> pool(torch.ones(1, 2, 4, 4), size=2).shape
    torch.Size([1, 2, 2, 2])
    """
    return F.avg_pool2d(codes, size, ceil_mode=True, count_include_pad=False)


class QuantizationLoss(torch.autograd.Function):
    """β‖z − sg(e)‖² + ‖sg(z) − e‖² (VQ-VAE, eq. 3), each a mean over all entries; the difference is computed once."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, vectors: Tensor, beta: float) -> Tensor:
        difference = latent - vectors
        ctx.save_for_backward(difference)
        ctx.beta = beta
        return difference.square().mean() * (1 + beta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (difference,) = ctx.saved_tensors
        to_vectors = difference * (grad * (-2 / difference.numel()))
        return to_vectors * -ctx.beta, to_vectors, None
