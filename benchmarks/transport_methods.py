"""The methods of the transport benchmark: ours, the alternatives, and the projection that each of them includes.

Each takes codes (b n c), texts (b m d), a projection (c d) and an absolute blur. It returns values to differentiate and
a function that gives its transport costs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import ot
import torch
from torch import Tensor

from tavq_plugin.ot import solve

# codes, texts, projection and blur -> values b to differentiate, and a function that gives the costs (or None)
Method = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Callable[[], Tensor] | None]]


def ours(x: Tensor, y: Tensor, w: Tensor, epsilon: float) -> tuple[Tensor, Callable[[], Tensor]]:
    """`solve` through `project`: the projected codes are never formed."""
    result = solve(x, y, project=w, epsilon=epsilon, epsilon_mode="absolute")
    return result.value, lambda: result.transport_cost


def ours_projected(x: Tensor, y: Tensor, w: Tensor, epsilon: float) -> tuple[Tensor, Callable[[], Tensor]]:
    """`solve` on codes projected first."""
    result = solve(x @ w, y, epsilon=epsilon, epsilon_mode="absolute")
    return result.value, lambda: result.transport_cost


def pot_emd2(x: Tensor, y: Tensor, w: Tensor, epsilon: float) -> tuple[Tensor, Callable[[], Tensor]]:
    """POT's exact `emd2`, a loop over the batch: what POT's users write."""
    p = x @ w
    a, b = (torch.full((t.shape[1],), 1 / t.shape[1], dtype=t.dtype, device=t.device) for t in (p, y))
    value = torch.stack([ot.emd2(a, b, ot.dist(u, v)) for u, v in zip(p, y, strict=True)])
    return value, lambda: value


def pot_batch(x: Tensor, y: Tensor, w: Tensor, epsilon: float) -> tuple[Tensor, Callable[[], Tensor]]:
    """POT's `ot.batch`, log-domain Sinkhorn; 300 iterations or its default tolerance."""
    cost = ot.batch.dist_batch(x @ w, y)
    result = ot.batch.solve_batch(cost, reg=epsilon, reg_type="kl", max_iter=300, method="log_sinkhorn")
    return result.value, lambda: result.value_linear


def geomloss_sinkhorn(x: Tensor, y: Tensor, w: Tensor, epsilon: float) -> tuple[Tensor, Callable[[], Tensor]]:
    """geomloss, batched, not debiased, of equal blur; its value holds the entropy (it gives no plan)."""
    from geomloss import SamplesLoss

    loss = SamplesLoss("sinkhorn", p=2, blur=(epsilon / 2) ** 0.5, debias=False, backend="tensorized")
    value = 2 * loss(x @ w, y)
    return value, lambda: value


def flash_sinkhorn(x: Tensor, y: Tensor, w: Tensor, epsilon: float) -> tuple[Tensor, Callable[[], Tensor]]:
    """flash-sinkhorn (CUDA only), a loop over the batch, of equal blur; its value holds the entropy."""
    from flash_sinkhorn import SamplesLoss

    loss = SamplesLoss("sinkhorn", p=2, eps=epsilon, debias=False)
    value = torch.stack([loss(u, v) for u, v in zip(x @ w, y, strict=True)])
    return value, lambda: value


def ott_jax(x: Tensor, y: Tensor, w: Tensor, epsilon: float) -> tuple[Tensor, Callable[[], Tensor]]:
    """ott-jax: compiled, batched by vmap, its default threshold; the tensors cross to JAX and back."""
    value = _Jax.apply(x, y, w, epsilon)
    return value, lambda: value


class _Jax(torch.autograd.Function):
    """The sum of the regularised costs; its gradient comes with it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, w: Tensor, epsilon: float) -> Tensor:
        value, grads = _compiled()(*(t.numpy() for t in (x, y, w)), epsilon)
        ctx.save_for_backward(*(torch.from_numpy(np.array(g)) for g in grads))
        return torch.from_numpy(np.array(value))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scaled; every problem has one weight."""
        return *(grad[0] * g for g in ctx.saved_tensors), None


@cache
def _compiled() -> Callable[..., Any]:
    import jax
    from ott.geometry.pointcloud import PointCloud
    from ott.solvers import linear

    def total(x: Any, y: Any, w: Any, epsilon: float) -> Any:
        costs = jax.vmap(lambda u, v: linear.solve(PointCloud(u, v, epsilon=epsilon)).reg_ot_cost)(x @ w, y)
        return costs.sum(), costs

    def run(*arguments: Any) -> Any:
        (_, costs), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(*arguments)
        return costs, grads

    return jax.jit(run)


def bare(x: Tensor, y: Tensor, w: Tensor, epsilon: float) -> tuple[Tensor, None]:
    """The projection alone, forward and backward: the least that a loss on projected codes takes."""
    p = x @ w
    return (p * p.detach()).sum((1, 2)), None


NEEDS = {"geomloss": "geomloss", "ott-jax": "ott", "flash-sinkhorn": "flash_sinkhorn"}  # module it is imported from
METHODS: dict[str, Method] = {
    "ours": ours,
    "ours, projected first": ours_projected,
    "POT emd2 loop": pot_emd2,
    "ot.batch": pot_batch,
    "geomloss": geomloss_sinkhorn,
    "ott-jax": ott_jax,
    "flash-sinkhorn": flash_sinkhorn,
    "bare projection": bare,
}


ONCE = {"ot.batch"}  # slow methods: one run, as a warm-up would not change it


def fitting(device: str) -> dict[str, Method]:
    """The installed methods for a device: flash-sinkhorn runs on CUDA alone, and the JAX here is the CPU's."""
    other = "ott-jax" if device == "cuda" else "flash-sinkhorn"
    return {name: method for name, method in METHODS.items() if name != other and find_spec(NEEDS.get(name, "ot"))}
