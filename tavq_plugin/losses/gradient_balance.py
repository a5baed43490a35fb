"""Balance the gradient of the alignment against the host's own, at one tensor of the host."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-5  # what remains below this share of the alignment's gradient is rounding, and is not scaled up


class Balanced(NamedTuple):
    """The gradient to pass on, and what was found about it; scalars stay on the device."""

    gradient: Tensor  # the host's, plus the scaled part of the alignment's that does not oppose it
    usable: Tensor  # bool: the host's gradient is finite and not 0; if it is not, it passes on alone
    cosine: Tensor  # of both gradients over the batch, before anything is removed; NaN where one is 0
    ratio: Tensor  # norm of the alignment's over the host's, before it is scaled


@torch.no_grad()
def balance_gradient(alignment: Tensor, host: Tensor, ratio: float, *, images: int | None = 0) -> Balanced:
    """g + ρ · ‖g‖ / ‖a'‖ · a' with a' = a − min(0, ⟨a, g⟩) / ⟨g, g⟩ · g; two tensors of one shape -> Balanced.

    The removed part is that of each image, so no image's own gradient is opposed (as PCGrad, arXiv 2001.06782, does for
    tasks); the norms are those of the batch. Nothing is added where the whole of `a` opposes `g` or `a` is 0. Computed
    in at least float32. A NaN of the alignment is passed on.

    Args:
        alignment: The alignment's gradient, a.
        host: The host's gradient, g.
        ratio: ρ, norm of what is added over that of the host's gradient.
        images: Axis of the images; None for a codebook, from which the opposing part is removed as a whole.

    >>> balance_gradient(torch.tensor([[-1.0, 2.0]]), torch.tensor([[3.0, 0.0]]), 0.5).gradient
    tensor([[3.0000, 1.5000]])
    """
    dtype = torch.promote_types(host.dtype, torch.float32)
    a, g = alignment.to(dtype), host.to(dtype)
    dims = [axis for axis in range(g.ndim) if images is None or axis != images % g.ndim]
    along = (a * g).sum(dims, keepdim=True) if dims else a * g
    squared = (torch.linalg.vector_norm(g, dim=dims, keepdim=True) if dims else g).square()
    opposing = torch.where(squared > 0, along.clamp(max=0) / squared, torch.zeros_like(squared))
    kept = torch.addcmul(a, opposing, g, value=-1, out=torch.empty_like(g))  # in g's layout, which sums depend on
    norm_a, norm_g, norm_kept = torch.linalg.vector_norm(a), squared.sum().sqrt(), torch.linalg.vector_norm(kept)
    usable = norm_g.isfinite() & (norm_g > 0)
    factor = torch.where(norm_kept <= ROUNDING * norm_a, torch.zeros_like(norm_g), ratio * norm_g / norm_kept)
    gradient = kept.mul_(factor).masked_fill_(~usable, 0).add_(g)  # in place: new buffers cost more than the sums
    return Balanced(gradient.to(host.dtype), usable, along.sum() / (norm_a * norm_g), norm_a / norm_g)
