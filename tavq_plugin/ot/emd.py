"""Exact transport by POT's network simplex on the CPU: the oracle the fast solver is held against."""

from __future__ import annotations

import torch
from torch import Tensor


def emd(cost: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each code's plan over the units, and both potentials, a problem at a time; b m n, b n, b m -> b m n, b m, b n.

    A problem with a cost that is not finite is NaN (POT itself would give 0); RuntimeError where POT does not finish.
    """
    import ot

    q, units, codes = torch.zeros_like(cost), torch.zeros_like(b), torch.zeros_like(a)
    for i, (c, left, right) in enumerate(zip(cost, a, b, strict=True)):
        columns, rows = left.nonzero()[:, 0], right.nonzero()[:, 0]
        if not len(rows):
            continue
        if not (c.isfinite().all() and left.isfinite().all() and right.isfinite().all()):
            q[i] = units[i] = codes[i] = torch.nan
            continue
        part = c[rows][:, columns].double().cpu().T.contiguous()
        left, right = left[columns].double().cpu(), right[rows].double().cpu()
        plan, log = ot.emd((left / left.sum()).numpy(), (right / right.sum()).numpy(), part.numpy(), log=True)
        if log["warning"]:
            raise RuntimeError(f"POT's emd did not finish on problem {i}: {log['warning']}")
        q[i, rows[:, None], columns] = (torch.from_numpy(plan) / left[:, None]).T.to(cost)
        units[i, rows] = torch.from_numpy(log["v"]).to(cost)
        codes[i, columns] = torch.from_numpy(log["u"]).to(cost)
    return q, units, codes
