"""vector-quantize-pytorch: quantizers inside a user's own autoencoder (lucidrains; seen: 1.32.0).

Quirks: tokens are channels-last (b n c) unless `accept_image_fmap`, `channel_first` or a 4-D input of FSQ and LFQ.
Codebooks are buffers that EMA moves in every training forward, so they have moved when the added levels look them up.
SimVQ's codebook is computed, as is every codebook behind `project_out`. FSQ has no loss and int32 indices. ResidualVQ
returns one loss per stage, HierarchicalVQ one map of indices per scale. k-means may start a codebook in any forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.types import Quantized


def _as_map(tokens: Tensor, channels_first: bool) -> Tensor:
    """Tokens as a map; b n c, b c n, b h w c or b c h w -> b c h w."""
    if not channels_first:
        tokens = rearrange(tokens, "b ... c -> b c ...")
    if tokens.ndim == 4:
        return tokens
    side = isqrt(tokens.shape[-1])
    if tokens.ndim != 3 or side**2 != tokens.shape[-1]:
        raise ValueError(
            f"the quantizer got {tuple(tokens.shape)} (b c n), and n tokens make no square grid: quantize a map "
            "(accept_image_fmap=True or channel_first=True), or pass parse="
        )
    return rearrange(tokens, "b c (h w) -> b c h w", h=side)


def _resized(indices: Tensor, grid: Sequence[int]) -> Tensor:
    """A map on another grid, each entry repeated; b h w -> b h w. As small as before again, it is the same."""
    for axis, size in enumerate(grid, start=1):
        former = indices.shape[axis]
        start = torch.arange(size, device=indices.device) * former
        indices = indices.index_select(axis, start // size if size >= former else -(-start // size))
    return indices


def _require_one_table(module: nn.Module, *settings: tuple[bool, str]) -> None:
    """Raise ValueError if one of the settings is on, as the quantizer then has no single codebook."""
    for is_on, setting in settings:
        if is_on:
            raise ValueError(f"{type(module).__name__} with {setting} has no single k c table: pass parse= for it")


class VectorQuantizeQuantizer:
    """VectorQuantize: (q, indices, loss)."""

    def __init__(self, module: nn.Module) -> None:
        _require_one_table(
            module,
            (module.heads > 1, "heads > 1"),
            (module.accept_3d_fmap, "accept_3d_fmap"),
            (module._codebook.affine_param, "affine_param"),
            (module._codebook.vq_bridge is not None, "vq_bridge"),
        )
        self.module = module
        by_itself = module.directional_reparam or module.sync_update_v > 0 or not module.route_gradients_to_input
        self.straight_through = not (module.has_projections or (module.learnable_codebook and by_itself))

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the quantizer's output; b n c or b c h w."""
        vectors, indices, loss = output[:3]
        first = self.module.accept_image_fmap or not self.module.channel_last
        vectors = _as_map(vectors, first)
        return Quantized(vectors, indices.reshape(vectors[:, 0].shape), loss, latent=_as_map(z_in, first))

    def codebook(self) -> Tensor:
        """The table as the decoder reads it, behind `project_out`; k c."""
        return self.module.project_out(self.module.codebook)


class ResidualQuantizer:
    """ResidualVQ: (q, indices b n q, loss q); here the first stage's indices and the sum of all stages' vectors."""

    sums_lookups = True

    def __init__(self, module: nn.Module) -> None:
        _require_one_table(module, (module.implicit_neural_codebook, "implicit_neural_codebook"))
        self.module = module
        self.straight_through = VectorQuantizeQuantizer(module.layers[0]).straight_through and not (
            module.has_projections or module.diveq
        )

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the quantizer's output; b n c or b c h w."""
        vectors, indices, losses = output[:3]
        first = self.module.accept_image_fmap
        looked_up = None
        if self.codebook().requires_grad:
            looked_up = _as_map(self.module.get_output_from_indices(indices), channels_first=False)
        vectors = _as_map(vectors, first)
        stage = indices[..., 0].reshape(vectors[:, 0].shape)
        return Quantized(vectors, stage, losses.sum(), latent=_as_map(z_in, first), looked_up=looked_up)

    def codebook(self) -> Tensor:
        """The first stage's table, behind `project_out`; k c."""
        return self.module.project_out(self.module.layers[0].codebook)

    @property
    def code_count(self) -> int:
        """Number of codes of the largest stage."""
        return max(layer.codebook_size for layer in self.module.layers)

    def read_tokens(self, z_in: Tensor, output: tuple) -> Tensor:
        """Numbers of every stage's codes; b h w q."""
        b, _, h, w = self.parse(z_in, output).vectors.shape
        return output[1].reshape(b, h, w, -1).long()

    def vectors_of(self, tokens: Tensor) -> Tensor:
        """The sum of every stage's codes; b h w q -> b c h w."""
        vectors = self.module.get_output_from_indices(rearrange(tokens, "b h w q -> b (h w) q"))
        return rearrange(vectors, "b (h w) c -> b c h w", h=tokens.shape[1])


class HierarchicalQuantizer:
    """HierarchicalVQ on maps: (q, indices of each scale, loss); here the finest's indices and all scales' vectors."""

    straight_through = True
    sums_lookups = True

    def __init__(self, module: nn.Module) -> None:
        _require_one_table(module, (module.spatial_dims != 2, "accept_image_fmap=False"))
        self.module = module

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the quantizer's output; the finest scale's indices, repeated where the grid is finer still."""
        vectors, indices, loss = output[:3]
        vectors = _as_map(vectors, self.module.channel_first)
        finest = F.interpolate(indices[-1][:, None].double(), size=vectors.shape[-2:])[:, 0].long()
        return Quantized(vectors, finest, loss, latent=_as_map(z_in, self.module.channel_first))

    def codebook(self) -> Tensor:
        """The shared table, or the finest scale's; k c."""
        return self.module.get_vq(self.module.num_levels - 1).codebook

    @property
    def code_count(self) -> int:
        """Number of codes of the largest scale."""
        return max(self.module.codebook_sizes)

    def read_tokens(self, z_in: Tensor, output: tuple) -> Tensor:
        """Numbers of every scale's codes, the coarsest scale first, repeated on the latent's grid; b h w s."""
        grid = self.parse(z_in, output).vectors.shape[2:]
        return torch.stack([_resized(indices, grid) for indices in output[1]], dim=-1).long()

    def vectors_of(self, tokens: Tensor) -> Tensor:
        """The sum over all scales; b h w s -> b c h w."""
        grid = tuple(tokens.shape[1:3])
        scales = [
            _resized(part, shape) for part, shape in zip(tokens.unbind(-1), self.module.level_shapes, strict=True)
        ]
        return _as_map(self.module.get_output_from_indices(scales, full_shape=grid), self.module.channel_first)


class FSQQuantizer:
    """FSQ: (q, indices int32), without loss; its codebook is all codes, behind `project_out`."""

    def __init__(self, module: nn.Module) -> None:
        _require_one_table(module, (module.num_codebooks > 1, "num_codebooks > 1"))
        if not module.return_indices:
            raise ValueError("FSQ(return_indices=False) gives no indices: build it with return_indices=True")
        self.module = module
        self.straight_through = not module.has_projections

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the quantizer's output; maps are always channels-first."""
        first = self.module.channel_first or z_in.ndim == 4
        vectors = _as_map(output[0], first)
        indices = output[1].reshape(vectors[:, 0].shape).long()
        return Quantized(vectors, indices, vectors.new_zeros(()), latent=_as_map(z_in, first))

    def codebook(self) -> Tensor:
        """Every code, as the decoder reads it; k c."""
        module = self.module
        return module.indices_to_codes(torch.arange(module.codebook_size, device=module._basis.device))


class LFQQuantizer:
    """LFQ: a named tuple (quantized, indices, entropy_aux_loss); its codebook is all sign vectors."""

    def __init__(self, module: nn.Module) -> None:
        _require_one_table(module, (module.num_codebooks > 1, "num_codebooks > 1"))
        self.module = module
        self.straight_through = not module.has_projections

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the quantizer's output, with or without its loss breakdown."""
        quantized, indices, loss = output[0] if isinstance(output[0], tuple) else output
        first = self.module.channel_first
        first = z_in.ndim == 4 if first is None else first
        vectors = _as_map(quantized, first)
        return Quantized(vectors, indices.reshape(vectors[:, 0].shape).long(), loss, latent=_as_map(z_in, first))

    def codebook(self) -> Tensor:
        """Every code, as the decoder reads it; k c."""
        module = self.module
        return module.indices_to_codes(torch.arange(module.codebook_size, device=module.codebook.device))


class SimVQQuantizer:
    """SimVQ: (q, indices, loss); its codebook is a frozen table behind a learned transform."""

    straight_through = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the quantizer's output as `Quantized`."""
        vectors, indices, loss = output
        vectors = _as_map(vectors, self.module.channel_first)
        latent = _as_map(z_in, self.module.channel_first)
        return Quantized(vectors, indices.reshape(vectors[:, 0].shape), loss, latent=latent)

    def codebook(self) -> Tensor:
        """The computed table; k c."""
        return self.module.codebook
