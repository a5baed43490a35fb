"""Tiny random-weight hosts, one builder a host class; a package that is absent skips its tests, visibly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

DDCONFIG = dict(
    double_z=False, z_channels=8, resolution=32, in_channels=3, out_ch=3, ch=32, ch_mult=(1, 1, 2), num_res_blocks=1,
    attn_resolutions=[16], dropout=0.0,
)  # fmt: skip


def taming(kind: str) -> nn.Module:
    """A taming VQGAN without Lightning."""
    pytest.importorskip("taming")
    from tavq_plugin.adapters.taming import VQGAN

    return VQGAN(DDCONFIG, n_embed=32, embed_dim=8, kind=kind)


def taming_lightning(kind: str) -> nn.Module:
    """taming's own VQModel or GumbelVQ, through the opt-in import fix."""
    pytest.importorskip("taming")
    from tavq_plugin.adapters.taming import enable_legacy_imports

    with enable_legacy_imports():
        from taming.models.vqgan import GumbelVQ, VQModel

        loss = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}
        if kind == "vq":
            return VQModel(DDCONFIG, loss, n_embed=32, embed_dim=8)
        schedule = {"target": "torch.nn.Identity"}
        return GumbelVQ(DDCONFIG, loss, n_embed=32, embed_dim=8, temperature_scheduler_config=schedule)


def diffusers() -> nn.Module:
    """diffusers' VQModel with three resolutions."""
    package = pytest.importorskip("diffusers")
    return package.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 32), norm_num_groups=8, latent_channels=8, vq_embed_dim=8, num_vq_embeddings=32,
    )  # fmt: skip


HOSTS = {
    "taming-vq": lambda: taming("vq"),
    "taming-gumbel": lambda: taming("gumbel"),
    "taming-lightning-vq": lambda: taming_lightning("vq"),
    "taming-lightning-gumbel": lambda: taming_lightning("gumbel"),
    "diffusers": diffusers,
}


def tiny(name: str) -> nn.Module:
    """A host by name, from a fixed seed."""
    torch.manual_seed(0)
    return HOSTS[name]()


def first(output: object) -> torch.Tensor:
    """The reconstruction in a host's output."""
    return output.sample if hasattr(output, "sample") else output[0]
