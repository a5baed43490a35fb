"""Small hosts with habits seen in real code, which a guess by shape would get wrong; all take b 3 h w."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.types import Quantized


def parse(z: Tensor, output: tuple) -> Quantized:
    """Read what `Quantizer` returns."""
    return Quantized(*output)


class Quantizer(nn.Module):
    """A VQ with a 16 × 8 table, and one habit; b c h w -> (vectors, indices, loss)."""

    def __init__(
        self, k: int = 16, c: int = 8, *, normalised: bool = False, transposed: bool = False, straight: bool = True
    ) -> None:
        super().__init__()
        table = torch.randn(k, c) * 3
        self.table = nn.Parameter(table.T.contiguous() if transposed else table)
        self.normalised, self.transposed, self.straight = normalised, transposed, straight

    def codes(self) -> Tensor:
        table = self.table.T if self.transposed else self.table
        return F.normalize(table, dim=1) if self.normalised else table

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        table = self.codes()
        indices = nearest(z, table)
        q = rearrange(table[indices], "b h w c -> b c h w")
        loss = (q - z.detach()).square().mean() + 0.25 * (q.detach() - z).square().mean()
        return (z + (q - z).detach() if self.straight else q), indices, loss


def nearest(z: Tensor, table: Tensor) -> Tensor:
    """Index of the nearest row; b c h w, k c -> b h w."""
    return torch.cdist(z.flatten(2).mT.contiguous(), table[None]).argmin(-1).view(len(z), *z.shape[2:])


class Gumbel(nn.Module):
    """Soft codes in training, one-hot ones in eval mode; gradient to the latent and to the table."""

    def __init__(self) -> None:
        super().__init__()
        self.logits, self.table = nn.Conv2d(8, 16, 1), nn.Parameter(torch.randn(16, 8))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        soft = F.gumbel_softmax(self.logits(z), tau=1.0, dim=1, hard=not self.training)
        return torch.einsum("bnhw,nd->bdhw", soft, self.table), soft.argmax(1), z.new_zeros(())


class StartsItself(Quantizer):
    """Takes its table from its first call, and counts calls, in every mode and in all kinds of attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("usage", torch.zeros(16))
        self.register_buffer("started", torch.tensor(False))
        self.calls, self.log, self.random = 0, {"seen": [0]}, torch.Generator()
        self.average = torch.zeros(16)  # a plain attribute

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.started:
            rows = rearrange(z, "b c h w -> (b h w) c")
            chosen = torch.randint(len(rows), (16,), generator=self.random)
            self.table.data = rows[chosen].detach() + torch.randn(16, 8) * 1e-2
            self.started = torch.tensor(True)
        output = super().forward(z)
        self.usage += torch.bincount(output[1].flatten(), minlength=16)
        self.average = 0.9 * self.average + self.usage
        self.calls += 1
        self.log["seen"].append(self.calls)
        return output


class Drifting(Quantizer):
    """Looks up a copy of its table, which is refreshed when the host says so."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("copy", self.table.detach().clone())

    def codes(self) -> Tensor:
        return self.copy


class Projected(Quantizer):
    """Brings its input of 12 channels to the codes' 8 by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(12, 8, 1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().forward(self.inner(z))


class Host(nn.Module):
    """Two resolutions above the code grid, an eighth of the image's; b 3 h w -> (b 3 h w, loss)."""

    def __init__(self, quantizer: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 4, 2, 1), nn.Conv2d(8, 8, 4, 2, 1)
        self.to_codes, self.vq, self.up = nn.Conv2d(8, width, 4, 2, 1), quantizer, nn.ConvTranspose2d(8, 3, 8, 8)

    def latent(self, images: Tensor) -> Tensor:
        return self.to_codes(self.down(self.stem(images)))

    def decode(self, z_q: Tensor) -> Tensor:
        return self.up(z_q)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z_q, _, loss = self.vq(self.latent(images))
        return self.decode(z_q), loss


class CallsTwice(Host):
    """Quantizes the latent, and once more for another loss."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z = self.latent(images)
        z_q, _, loss = self.vq(z)
        return self.decode(z_q), loss + (self.vq(z.detach())[0] - z).square().mean()


class OnlyOneSize(Host):
    """Refuses all but 96 pixels, in words."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[-1] != 96:
            raise ValueError(f"got {images.shape[-1]} pixels, this host takes 96 px")
        return super().forward(images)


class EvalFails(Host):
    """Works in training mode only."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            raise RuntimeError("no statistics were gathered yet")
        return super().forward(images)


class SharedDown(Host):
    """One module makes both resolutions above the code grid."""

    def latent(self, images: Tensor) -> Tensor:
        return self.to_codes(self.down(self.down(self.stem(images))))


class DecodesAnother(Host):
    """Its decode takes what is unquantized; its forward does not use it."""

    def decode(self, z: Tensor) -> Tensor:
        return self.up(self.vq(-z)[0])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z_q, _, loss = self.vq(self.latent(images))
        return self.up(z_q), loss


class Attention(nn.Module):
    """Self-attention over tokens; its softmax is a module, whose output b heads n n looks like a feature map."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.qkv, self.weights = nn.Linear(c, 3 * c), nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (t h c) -> t b h n c", t=3, h=2)
        return x + rearrange(self.weights(q @ k.mT / 3) @ v, "b h n c -> b n (h c)")


class TokenHost(nn.Module):
    """A ViT of two stages of tokens, 8 × 8 and 4 × 4; only attention weights are 4-D."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.first, self.merge, self.second = (
            nn.Linear(3 * 8 * 8, 16), Attention(16), nn.Linear(4 * 16, 8), Attention(8)
        )  # fmt: skip
        self.vq, self.up = Quantizer(), nn.ConvTranspose2d(8, 3, 16, 16)

    def decode(self, z_q: Tensor) -> Tensor:
        return self.up(z_q)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h = images.shape[-1] // 8
        tokens = self.first(self.patch(F.unfold(images, 8, stride=8).mT))
        fours = rearrange(tokens, "b (h s w t) c -> b (h w) (s t c)", h=h // 2, s=2, t=2)
        tokens = self.second(self.merge(fours))
        z_q, _, loss = self.vq(rearrange(tokens, "b (h w) c -> b c h w", h=h // 2))
        return self.decode(z_q), loss


class Block(nn.Module):
    """Attention and a perceptron over tokens."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(c), nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.mlp(self.attention(x))


class ViT(Host):
    """One resolution: patches of 8 × 8 pixels, then six blocks of tokens."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__(quantizer)
        del self.stem, self.down, self.to_codes
        self.patch, self.layers = nn.Conv2d(3, 8, 8, 8), nn.ModuleList(Block(8) for _ in range(6))

    def latent(self, images: Tensor) -> Tensor:
        patches = self.patch(images)
        x = rearrange(patches, "b c h w -> b (h w) c")
        for layer in self.layers:
            x = layer(x)
        return rearrange(x, "b (h w) c -> b c h w", h=patches.shape[2])


class ByMethod(Host):
    """Quantizes in a method of its own, with its own table."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.table = nn.Parameter(torch.randn(16, 8) * 0.3)

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        indices = nearest(z, self.table)
        q = rearrange(self.table[indices], "b h w c -> b c h w")
        return z + (q - z).detach(), indices, (q - z.detach()).square().mean()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z_q, _, loss = self.quantize(self.latent(images))
        return self.decode(z_q), loss


class CallsForward(Host):
    """Calls its quantizer by `.forward`, which runs no hook."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z_q, _, loss = self.vq.forward(self.latent(images))
        return self.decode(z_q), loss


def by_function() -> Host:
    """A host whose quantizer is a function in its Python module."""
    module: Any = ModuleType("strange_functional")

    def quantize(z: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        indices = nearest(z, table)
        q = rearrange(table[indices], "b h w c -> b c h w")
        return z + (q - z).detach(), indices, (q - z.detach()).square().mean()

    module.quantize = quantize
    sys.modules["strange_functional"] = module

    class ByFunction(ByMethod):
        def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return module.quantize(z, self.table)

    return ByFunction()


def everything(value: Any) -> Any:
    """All of a module's state, as plain values that can be compared, and copies of its tensors."""
    if isinstance(value, nn.Module):
        return {name: everything(part) for name, part in vars(value).items()}
    if isinstance(value, Tensor):
        return (value.detach().clone(), value.requires_grad)
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, dict):
        return {key: everything(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [everything(part) for part in value]
    return value


def is_equal(a: Any, b: Any) -> bool:
    """Whether two results of `everything` are equal, tensors bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(is_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_equal, a, b))
    return a == b
