"""Build the host that a recipe names, and check that it takes the recipe's images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tavq_plugin.hosts.instantiate import builder_of, instantiate
from tavq_plugin.hosts.restored import restored
from tavq_plugin.training.recipe import HostRecipe, Recipe


def small_vqgan(resolution: int, n_embed: int = 512) -> nn.Module:
    """The demo's taming VQGAN: `n_embed` codes of width 64, stride 8, or 4 below 64 px so that 8 × 8 codes remain."""
    from tavq_plugin.adapters.taming import VQGAN

    ch_mult = (1, 2, 2, 4) if resolution >= 64 else (1, 2, 4)
    ddconfig: dict[str, Any] = {
        "double_z": False, "z_channels": 64, "resolution": resolution, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": ch_mult, "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    return VQGAN(ddconfig, n_embed=n_embed, embed_dim=64, legacy=False)


def refuse_targets(recipe: Recipe, *, allow: Sequence[str] = ()) -> None:
    """Raise ValueError if a recipe names a target outside the allowed packages; nothing is built here."""
    if recipe.host.target != "small":
        builder_of(recipe.host.target, recipe.host.params, allow=allow, where="host.target")
    perceptual = recipe.perceptual
    if perceptual.kind == "frozen" and perceptual.weight and perceptual.network:
        builder_of(perceptual.network, {}, allow=allow, where="perceptual.network")


def build_host(recipe: HostRecipe, resolution: int, *, allow: Sequence[str] = ()) -> nn.Module:
    """A new host from its target and params; "small" also receives the resolution."""
    if recipe.target == "small":
        return small_vqgan(**{"resolution": resolution, **recipe.params})
    host = instantiate(recipe.target, recipe.params, allow=allow, where="host.target")
    if not isinstance(host, nn.Module):
        raise ValueError(f"host.target {recipe.target} gave a {type(host).__name__}: a host must be a torch.nn.Module")
    return host


def find_reconstruction(output: object) -> Tensor | None:
    """The reconstruction in a host's output: its `sample`, or the first map with three channels; b 3 h w or None."""
    parts = [output.sample] if hasattr(output, "sample") else output if isinstance(output, tuple | list) else [output]
    return next((p for p in parts if isinstance(p, Tensor) and p.ndim == 4 and p.shape[1] == 3), None)


def refuse_resolution(host: nn.Module, resolution: int) -> None:
    """Raise ValueError if a host does not return an image of the size that it was given."""
    images = next(host.parameters()).new_zeros(1, 3, resolution, resolution)
    try:
        with restored(host):  # a quantizer may start itself in this first call, which shows it no image
            host.eval()
            reconstruction = find_reconstruction(host(images))
    except Exception as error:
        raise ValueError(
            f"{type(host).__name__} cannot take images of {resolution} px ({type(error).__name__}: {error}): give a "
            "resolution that its strides divide, and that fits its own settings"
        ) from error
    if reconstruction is None:
        raise ValueError(f"{type(host).__name__} returns no image: give a host whose forward returns a reconstruction")
    if reconstruction.shape != images.shape:
        side = reconstruction.shape[-1]
        raise ValueError(
            f"{type(host).__name__} returns {side} px for images of {resolution} px: give resolution={side}, or "
            "another that its strides divide"
        )
