"""How many directions the codes of a batch use."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 4.0  # codes are equal if they differ by less, in units of the precision of their numbers


@torch.no_grad()
def effective_rank(codes: Tensor) -> Tensor:
    """exp(−Σ p log p), p = σ / Σ σ, of the singular values σ of the batch's centred codes; b c h w -> scalar.

    A number of directions (Roy & Vetterli 2007, "The effective rank"): 1 for codes on a line, c for codes that spread
    equally in all directions, and 0 if all codes are equal up to rounding or there are none. NaN if a code is not
    finite. The σ are the square roots of the eigenvalues of the c × c scatter matrix, computed in float64 one image at
    a time.

    >>> line = torch.tensor([1.0, 2.0, 4.0]) * torch.tensor([3.0, -1.0])[:, None]
    >>> round(effective_rank(line[None, :, None]).item(), 3)
    1.0
    """
    images = codes.flatten(2)
    b, c, n = images.shape
    if not b:
        return images.new_zeros((), dtype=torch.promote_types(codes.dtype, torch.float32))
    first = images[0, :, :1].double()  # equal codes then differ by exactly 0
    total, scatter = first.new_zeros(c, 1), first.new_zeros(c, c)
    with torch.autocast(codes.device.type, enabled=False):
        for image in images:
            apart = image.double() - first
            total += apart.sum(1, keepdim=True)
            scatter += apart @ apart.mT
        scatter -= total @ total.mT / (b * n)
    finite = scatter.isfinite().all()
    variances = torch.linalg.eigvalsh(torch.where(finite, scatter, 0.0)).clamp(min=0)
    spread = variances.sum().sqrt()
    equal = spread <= ROUNDING * torch.finfo(codes.dtype).eps * torch.linalg.vector_norm(images, dtype=torch.float64)
    share = variances.sqrt() / variances.sqrt().sum()
    rank = torch.where(equal, 0.0, (-torch.special.xlogy(share, share).sum()).exp())
    return torch.where(finite, rank, torch.nan).to(torch.promote_types(codes.dtype, torch.float32))
