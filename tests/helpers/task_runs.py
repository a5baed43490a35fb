"""A run without training: each patch of pixels is coded as the nearest of 64 colours; and the data it encodes."""

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from tavq_plugin.pixels import to_float
from tavq_plugin.tasks.task import EncodedRun
from tavq_plugin.tasks.task_data import TaskData, drawn_data
from tavq_plugin.tasks.tokens import CodeSequences, LevelGrid, TokenLayout
from tavq_plugin.types import Codes, Level

GRID = 8  # codes per side
SHADES = torch.linspace(-1, 1, 4)
PALETTE = torch.cartesian_prod(SHADES, SHADES, SHADES)  # 64 3, in [-1, 1]
LAYOUT = TokenLayout((LevelGrid(GRID, GRID, len(PALETTE)),))


class PatchHost(nn.Module):
    """Reads the mean colour of each patch, and paints patches."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.side = resolution // GRID
        self.palette = nn.Parameter(PALETTE.clone(), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """b 3 r r in [-1, 1] -> b 8 8 int64."""
        means = reduce(images, "b c (h p) (w q) -> b h w c", "mean", p=self.side, q=self.side)
        return torch.cdist(means.flatten(0, 2), self.palette).argmin(1).view(means.shape[:3])


class PatchAdapter:
    """What an adapter does for this host."""

    def __init__(self, host: PatchHost) -> None:
        self.model = host

    def decode(self, z_q: Tensor) -> Tensor:
        """b 3 8 8 -> b 3 r r."""
        return repeat(z_q, "b c h w -> b c (h p) (w q)", p=self.model.side, q=self.model.side)

    def codebook(self) -> Tensor:
        """The colours; 64 3."""
        return self.model.palette


class PatchTokenizer(nn.Module):
    """A tokenizer of one level, in place of a wrapped host."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.host, self.code_width, self.decode_fails = PatchHost(resolution), 3, ""
        self.adapter = PatchAdapter(self.host)

    def encode(self, images: Tensor) -> Codes:
        """b 3 r r in [-1, 1] -> the codes of the one level."""
        indices = self.host(images)
        vectors = rearrange(self.host.palette[indices], "b h w c -> b c h w")
        return Codes((Level(vectors, vectors, indices, vectors.new_zeros(())),))

    def decode(self, codes: Codes) -> Tensor:
        """Codes -> b 3 r r."""
        return self.adapter.decode(codes.final.quantized)


def patch_runs(resolution: int = 16, n_train: int = 48, n_eval: int = 12, seed: int = 0) -> tuple[EncodedRun, TaskData]:
    """Drawn scenes, 8 × 8 codes each, and the run that has made them."""
    data = drawn_data(resolution=resolution, n_train=n_train, n_eval=n_eval)
    tokenizer = PatchTokenizer(resolution)
    train, held_out = (
        CodeSequences(
            LAYOUT.flatten([tokenizer.encode(to_float(part.images)).final.indices]),
            LAYOUT,
            PALETTE.clone(),
            f"64 colours, {data.fingerprint}",
        )
        for part in (data.train, data.held_out)
    )
    return EncodedRun("patches", seed, tokenizer, None, train, held_out), data
