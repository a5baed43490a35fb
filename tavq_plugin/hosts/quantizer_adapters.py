"""Adapters of quantizers: a base class for those with an `embedding`, and one that asks the user's function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tavq_plugin.hosts.find_table import FoundTable
from tavq_plugin.hosts.host_functions import takes
from tavq_plugin.types import Quantized


class EmbeddingQuantizer:
    """Base class for quantizers that have an `embedding` and return what taming's return."""

    straight_through = True

    def __init__(self, module: nn.Module) -> None:
        if getattr(module, "remap", None) is not None:
            raise ValueError("this quantizer remaps its indices: build it without remap=, then wrap it")
        self.module: Any = module  # Any: each quantizer has attributes of its own

    def parse(self, z_in: Tensor, output: Any) -> Quantized:
        """taming's output (vectors, loss, (_, _, indices)) as `Quantized`."""
        vectors, loss, (_, _, indices) = output
        return self.on_grid(vectors, indices, loss)

    def codebook(self) -> Tensor:
        """The embedding's weight, k c."""
        return self.module.embedding.weight

    @staticmethod
    def on_grid(vectors: Tensor, indices: Tensor, loss: Tensor, latent: Tensor | None = None) -> Quantized:
        """`Quantized` with indices of any shape, put on the vectors' grid; b c h w, (b h w), scalar -> Quantized."""
        return Quantized(vectors, indices.reshape(len(vectors), *vectors.shape[2:]).long(), loss, latent=latent)


class CustomQuantizer:
    """The adapter of a quantizer that the user's `parse` reads; its codebook is the found table, or its only matrix."""

    def __init__(
        self,
        module: nn.Module,
        parse: Callable[..., Quantized],
        *,
        straight_through: bool = True,
        found: FoundTable | None = None,
    ) -> None:
        self.module, self._parse, self.straight_through, self.found = module, parse, straight_through, found

    def parse(self, z_in: Any, output: Any) -> Quantized:
        """What the user's function returns; it gets the module if it takes three arguments."""
        if takes(self._parse, 2):
            return self._parse(z_in, output)
        return self._parse(z_in, output, self.module)

    def codebook(self) -> Tensor | None:
        """The found table; else the only k c parameter, parametrized or not; None if there is none, or several."""
        if self.found is not None:
            return self.found.table(self.module)
        tables: list[Tensor] = [
            p for name, p in self.module.named_parameters() if p.ndim == 2 and "parametrizations." not in name
        ]
        for module in self.module.modules():
            if is_parametrized(module):
                names: Any = module.parametrizations
                tables += [table for name in names if (table := getattr(module, name)).ndim == 2]
        return tables[0] if len(tables) == 1 else None
