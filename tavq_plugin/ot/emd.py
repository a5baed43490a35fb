"""Exact transport by POT's network simplex on the CPU: the reference for the fast solver."""

from __future__ import annotations

import torch
from torch import Tensor


def emd(cost: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solve each problem in turn; b m n, b n, b m -> each code's plan over the units b m n, potentials b m and b n.

    A problem whose cost or masses are not finite gives NaN (POT itself would give 0). Raises RuntimeError if POT
    does not finish.
    """
    import ot

    q, unit_potentials, code_potentials = torch.zeros_like(cost), torch.zeros_like(b), torch.zeros_like(a)
    for i, (problem, code_masses, unit_masses) in enumerate(zip(cost, a, b, strict=True)):
        columns, rows = code_masses.nonzero()[:, 0], unit_masses.nonzero()[:, 0]
        if not len(rows):
            continue
        if not (problem.isfinite().all() and code_masses.isfinite().all() and unit_masses.isfinite().all()):
            q[i] = unit_potentials[i] = code_potentials[i] = torch.nan
            continue
        own = problem[rows][:, columns].double().cpu().T.contiguous()
        left, right = code_masses[columns].double().cpu(), unit_masses[rows].double().cpu()
        plan, log = ot.emd((left / left.sum()).numpy(), (right / right.sum()).numpy(), own.numpy(), log=True)
        if log["warning"]:
            raise RuntimeError(f"POT's emd did not finish on problem {i}: {log['warning']}")
        q[i, rows[:, None], columns] = (torch.from_numpy(plan) / left[:, None]).T.to(cost)
        unit_potentials[i, rows] = torch.from_numpy(log["v"]).to(cost)
        code_potentials[i, columns] = torch.from_numpy(log["u"]).to(cost)
    return q, unit_potentials, code_potentials
