"""Tiny hosts from codebases that are on no package index, imported from checkouts and never copied."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from helpers.checkouts_by_parse import CHECKOUTS_BY_PARSE
from helpers.import_checkout import importable, module, nothing
from helpers.tiny_hosts import DDCONFIG, Case
from torch import Tensor, nn


def llamagen() -> Case:
    """LlamaGen's VQModel; its usage buffer is detached, as its adapter says."""
    with importable("FoundationVision/LlamaGen"):
        from tokenizer.tokenizer_image.vq_model import ModelArgs, VQModel

        mult = [1, 1, 1]
        model = VQModel(
            ModelArgs(32, 8, encoder_ch_mult=mult, decoder_ch_mult=mult, z_channels=8, codebook_show_usage=True)
        )
    model.quantize.codebook_used = model.quantize.codebook_used.detach()

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        reconstruction, (vq, commit, _, _) = model(images)
        return reconstruction, images.new_zeros(()) if vq is None else vq + commit

    return Case(model, run=run, pickles=False)


def latent_diffusion(name: str) -> Case:
    """latent-diffusion's VQModel or VQModelInterface."""
    pytest.importorskip("taming")
    pytest.importorskip("pytorch_lightning")
    with importable("CompVis/latent-diffusion"):
        cls = getattr(importlib.import_module("ldm.models.autoencoder"), name)
        model = cls(ddconfig=DDCONFIG, lossconfig={"target": "torch.nn.Identity"}, n_embed=32, embed_dim=8)

    def through(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        return model.decode(model.encode(images)), images.new_zeros(())

    if name == "VQModel":
        return Case(model, pickles=False)
    return Case(model, run=through, forwards=False, pickles=False)


def seed_voken(name: str) -> Case:
    """Open-MAGVIT2 or IBQ."""
    lightning = pytest.importorskip("pytorch_lightning")
    with importable("TencentARC/SEED-Voken", main=module("main", instantiate_from_config=nothing), lightning=lightning):
        if name == "ibq":
            from src.IBQ.models.ibqgan import IBQ

            model = IBQ(DDCONFIG, {}, n_embed=32, embed_dim=8, use_entropy_loss=True)

            def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
                reconstruction, (quantizer, _, _, entropy) = model(images)
                return reconstruction, quantizer + entropy

            return Case(model, run=run, modes=("codebook", "both"), pickles=False)
        from src.Open_MAGVIT2.models.lfqgan import VQModel

        config = {name: DDCONFIG[name] for name in DDCONFIG if name not in ("attn_resolutions", "dropout")}
        config["z_channels"] = 5
        model = VQModel(
            config, {}, n_embed=32, embed_dim=5, sample_minimization_weight=1.0, batch_maximization_weight=1.0
        )
    return Case(model, modes=("encoder",), pickles=False)


def var() -> Case:
    """VAR's VQVAE, alone in a process group."""
    import torch.distributed as dist

    with importable("FoundationVision/VAR"):
        from models.vqvae import VQVAE

        model = VQVAE(vocab_size=32, z_channels=8, ch=32, v_patch_nums=(1, 2, 4), test_mode=False)
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        reconstruction, _, loss = model(images)
        return reconstruction, loss

    return Case(
        model, size=64, grids=(16, 8, 4), run=run, one_table=False, pickles=False,
        own_tokens=lambda model, images: torch.cat(model.img_to_idxBl(images), dim=1),
    )  # fmt: skip


def titok() -> Case:
    """TiTok's first stage at 64 px."""
    omegaconf = pytest.importorskip("omegaconf")
    with importable("bytedance/1d-tokenizer"):
        from modeling.titok import TiTok

        sizes = dict(codebook_size=32, token_size=8, use_l2_norm=True, commitment_cost=0.25, num_latent_tokens=6)
        sides = dict(
            vit_enc_model_size="small", vit_dec_model_size="small", vit_enc_patch_size=16, vit_dec_patch_size=16
        )
        config = dict(
            model=dict(vq_model=dict(**sizes, **sides, finetune_decoder=False, is_legacy=False)),
            dataset=dict(preprocessing=dict(crop_size=64)),
        )
        model = TiTok(omegaconf.OmegaConf.create(config))

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        reconstruction, report = model(images)
        return reconstruction, report["quantizer_loss"]

    return Case(model, size=64, grids=(4, 4, (1, 6)), run=run, pickles=False)


def cvq_vae() -> Case:
    """CVQ-VAE's Model with the settings of its paper."""
    with importable("lyndonzheng/CVQ-VAE"):
        from modules import Model

        model = Model(3, 16, 1, 8, 32, 8, distance="cos", anchor="probrandom", contras_loss=True)
    return Case(model, grids=(16, 8, 8), pickles=False)


def rq_vae() -> Case:
    """RQ-VAE with two depths; a stand-in replaces its transformer, which cannot be imported."""
    name = "rqvae.models.rqtransformer"
    pytest.importorskip("omegaconf")
    with importable("kakaobrain/rq-vae-transformer", **{name: module(name, get_rqtransformer=nothing)}):
        from rqvae.models.rqvae.rqvae import RQVAE

        shapes = dict(latent_shape=(8, 8, 8), code_shape=(8, 8, 2), shared_codebook=False, restart_unused_codes=True)
        model = RQVAE(embed_dim=8, n_embed=32, ddconfig=DDCONFIG, **shapes)
    own = dict(own_tokens=lambda model, images: model.get_codes(images))
    return Case(model, modes=("encoder",), one_table=False, pickles=False, **own)


def vit_vqgan() -> Case:
    """ViT-VQGAN with three layers of 32 px, patches of 4."""
    omegaconf = pytest.importorskip("omegaconf")
    pytest.importorskip("pytorch_lightning")
    general = module("enhancing.utils.general", initialize_from_config=nothing)
    utils = module("enhancing.utils", general=general)
    with importable("thuanz123/enhancing-transformers", **{utils.__name__: utils, general.__name__: general}):
        from enhancing.modules.stage1.vitvqgan import ViTVQ

        layers = omegaconf.OmegaConf.create(dict(dim=32, depth=3, heads=2, mlp_dim=32, dim_head=16))
        quantizer = omegaconf.OmegaConf.create(dict(embed_dim=8, n_embed=32))
        with patch("numpy.float", float, create=True):  # gone from numpy, used where positions are made
            model = ViTVQ("image", 32, 4, layers, layers, quantizer, loss=None)
    return Case(model, grids=(8, 8, 8), pickles=False)


def dome272() -> Case:
    """dome272's VQGAN; its width is fixed, so it is no tiny one."""
    with importable("dome272/VQGAN-pytorch"):
        from vqgan import VQGAN

        model = VQGAN(Namespace(device="cpu", latent_dim=16, num_codebook_vectors=32, beta=0.25, image_channels=3))

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        reconstruction, _, loss = model(images)
        return reconstruction, loss

    return Case(model, size=64, grids=(16, 8, 4), run=run, pickles=False)


def rosinality() -> Case:
    """rosinality's VQ-VAE-2."""
    with importable("rosinality/vq-vae-2-pytorch"):
        from vqvae import VQVAE

        model = VQVAE(channel=16, n_res_block=1, n_res_channel=8, embed_dim=8, n_embed=32)

    def own_tokens(model: nn.Module, images: Tensor) -> Tensor:
        *_, coarse, fine = model.encode(images)
        return torch.cat([coarse[..., None], fine.view(2, 4, 2, 4, 2).transpose(2, 3).flatten(3)], dim=-1)

    return Case(
        model, grids=(16, 8, 4), modes=("encoder",), decodes=False, pickles=False, own_tokens=own_tokens
    )  # fmt: skip


CHECKOUTS: dict[str, Callable[[], Case]] = {
    "llamagen": llamagen,
    "latent-diffusion": lambda: latent_diffusion("VQModel"),
    "latent-diffusion-interface": lambda: latent_diffusion("VQModelInterface"),
    "open-magvit2": lambda: seed_voken("magvit"),
    "ibq": lambda: seed_voken("ibq"),
    "var": var,
    "titok": titok,
    "cvq-vae": cvq_vae,
    "rq-vae": rq_vae,
    "vit-vqgan": vit_vqgan,
    "dome272": dome272,
    "rosinality": rosinality,
    **CHECKOUTS_BY_PARSE,
}


def build(name: str) -> Case:
    """A case by name, from a fixed seed, in training mode."""
    torch.manual_seed(0)
    case = CHECKOUTS[name]()
    case.model.train()
    return case
