"""How much cheaper it is to transport an image's codes onto its own text than onto another image's."""

from __future__ import annotations

import torch
from torch import Tensor

from tavq_plugin.losses.cloud_transport import transport_clouds
from tavq_plugin.losses.point_clouds import PointClouds
from tavq_plugin.ot.solve import TransportSettings


@torch.no_grad()
def own_minus_other(
    codes: PointClouds, text: PointClouds, settings: TransportSettings, *, own: Tensor | None = None
) -> Tensor:
    """1/|B| · Σ over i in B of T(i, i) − T(i, next(i)); l b n d, l b m d -> l.

    B are the images with text, and next(i) is the next of them in the batch, after the last the first. T(i, j) =
    ⟨P, C⟩ is the transport cost of image i's codes onto image j's text. Negative: codes are nearer to their own text.

    T itself also falls where codes say nothing about their image, when they all move towards texts in general. The
    difference does not: what depends on the codes alone cancels in each image, and what depends on the text alone
    (such as the number and the spread of its units) cancels in the sum, because `next` uses every text once, as own
    does. So for any T(i, j) = f(i) + g(j) it is 0, and for codes that are independent of the texts its mean is 0. T is
    the cost of the plan, and not F_ε = ⟨P, C⟩ + ε KL(P | a bᵀ), whose second part has another ε in each problem where ε
    is relative. Each cost is as exact as the settings make it: within about `tolerance` of its gain.

    Args:
        codes: Each image's codes.
        text: Each image's units. NaN in a level where fewer than two images have any.
        settings: Of the solver, the same for both parts.
        own: T(i, i), (l b), if it is known.
    """
    has_text = text.nonempty
    if own is None:
        own = transport_clouds(codes, text, settings).cost
    following = next_with_text(has_text)[..., None]
    other = PointClouds(text.points.take_along_dim(following[..., None], 1), text.masses.take_along_dim(following, 1))
    difference = (own - transport_clouds(codes, other, settings).cost).view_as(has_text)
    number = has_text.sum(1)
    return torch.where(number < 2, torch.nan, difference.sum(1) / number)


def next_with_text(has_text: Tensor) -> Tensor:
    """Each image's next with text, after the last the first; an image without text has itself; l b bool -> l b.

    >>> next_with_text(torch.tensor([[True, False, True, True]]))
    tensor([[2, 1, 3, 0]])
    """
    order = (~has_text).int().argsort(dim=1, stable=True)  # of the images with text first
    place = has_text.cumsum(1) % has_text.sum(1, keepdim=True).clamp(min=1)
    itself = torch.arange(has_text.shape[1], device=has_text.device)
    return torch.where(has_text, order.gather(1, place), itself)
