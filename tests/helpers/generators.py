"""Problems for the transport solver, from a seed."""

import torch
import torch.nn.functional as F
from torch import Tensor


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(b: int, n: int, m: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two standard normal clouds; b n d, b m d float64."""
    g = draw(seed)
    return torch.randn(b, n, d, generator=g).double(), torch.randn(b, m, d, generator=g).double()


def clustered(b: int, n: int, m: int, d: int, *, spread: float, repeated: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Codes and text around the same dozen centres, of unit length; repeated: codes drawn from n / 10 distinct ones."""
    g = draw(seed)
    centres = F.normalize(torch.randn(b, 12, d, generator=g), dim=2)

    def around(count: int) -> Tensor:
        pick = torch.randint(12, (b, count), generator=g)
        noise = spread * torch.randn(b, count, d, generator=g) / d**0.5
        return F.normalize(centres.take_along_dim(pick[..., None], 1) + noise, dim=2).double()

    x = around(n // 10 if repeated else n)
    if repeated:
        x = x.take_along_dim(torch.randint(x.shape[1], (b, n), generator=g)[..., None], 1)
    return x, around(m)
