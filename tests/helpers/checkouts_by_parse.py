"""Tiny hosts from checkouts that no adapter of a host knows: a small one reads the quantizer, or `parse=` does."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from helpers.import_checkout import importable, module, nothing
from helpers.tiny_hosts import DDCONFIG, Autoencoder, Case
from torch import Tensor, nn

from tavq_plugin.types import Quantized


def on_grid(vectors: Tensor, indices: Tensor, loss: Tensor) -> Quantized:
    """Flat indices on the vectors' grid; b c h w, (b h w), scalar -> Quantized."""
    return Quantized(vectors, indices.reshape(len(vectors), *vectors.shape[2:]), loss)


def parse_tuple(z: Tensor, output: tuple) -> Quantized:
    """(vectors, loss, (_, _, indices)), as taming's."""
    vectors, loss, (_, _, indices) = output
    return on_grid(vectors, indices, loss)


def parse_named(z: Tensor, output: tuple) -> Quantized:
    """(vectors, loss, {"min_encoding_indices": indices}), as unleashing-transformers'."""
    vectors, loss, found = output
    return on_grid(vectors, found["min_encoding_indices"], loss)


def parse_loss_first(z: Tensor, output: tuple) -> Quantized:
    """(loss, vectors, _, _, indices), as MishaLaskin's."""
    loss, vectors, _, _, indices = output
    return on_grid(vectors, indices, loss)


def parse_channels_last(z: Tensor, output: tuple) -> Quantized:
    """(vectors b h w c, indices), without a loss, as minDALL-E's."""
    vectors, indices = output
    return on_grid(vectors.movedim(-1, 1), indices, vectors.new_zeros(()))


def parse_without_indices(z: Tensor, output: tuple, module: nn.Module) -> Quantized:
    """(straight-through vectors, codes with gradient), as ritheshkumar95's; the indices are found again.

    The vectors are too, as the decoder changes the host's own in place.
    """
    _, codes = output
    loss = (codes - z.detach()).square().mean() + (z - codes.detach()).square().mean()
    return Quantized(z + (codes - z).detach(), module(z.detach()), loss)


def decode_by_generator(z_q: Tensor, host: Any) -> Tensor:
    """The decoder of unleashing-transformers and CodeFormer."""
    return host.generator(z_q)


BY_GENERATOR = dict(quantizer="quantize", parse=parse_named, decode=decode_by_generator)


def unscripted() -> AbstractContextManager[Any]:
    """Leave functions as they are where `torch.jit.script` decorates them.

    TorchScript changes a function's kernels after its first calls, so that a bare twin, run later, differs in rounding.
    """
    return patch.object(torch.jit, "script", lambda function: function)


def movq() -> Case:
    """MoVQGAN's MOVQ."""
    pytest.importorskip("pytorch_lightning")
    with importable("ai-forever/MoVQGAN", bare=["movqgan"]):
        from movqgan.models.vqgan import MOVQ

        model = MOVQ(DDCONFIG, n_embed=32, embed_dim=8)
    return Case(model, pickles=False, settings=dict(quantizer="quantize", parse=parse_tuple))


def lg_vq() -> Case:
    """LG-VQ's VQModel; a stand-in replaces the CLIP that only its training step calls."""
    pytest.importorskip("pytorch_lightning")
    clip = nn.Embedding(4, 4)
    clip.vocab_size = 4
    loader = module("taming.clip.clip", load=lambda *args, **kwargs: (clip, None))
    geometric = module("torch_geometric.nn", GCNConv=nothing, GATConv=nothing)
    graphs = module("torch_geometric.data", Data=nothing)
    figures = module("taming.modules.vqvae.vis_utils")
    stand_ins = {part.__name__: part for part in (loader, geometric, graphs, figures, module("torch_geometric"))}
    repository = "623851394/LG-VQ-language-guided-codebook-learning"
    with importable(repository, bare=["taming", "taming.clip"], **stand_ins):
        from taming.models.LG_vqgan import VQModel

        sizes = dict(clip_text_truncate_len=4, mask_transformer_layer=1, mask_transformer_head=2, drop_prob=0.0)
        model = VQModel(DDCONFIG | sizes, {"target": "torch.nn.Identity"}, n_embed=32, embed_dim=8)
    return Case(model, pickles=False)


def simvq() -> Case:
    """SimVQ's VQModel; its training program sets `codebook_count`."""
    lightning = pytest.importorskip("pytorch_lightning")
    given = module("main", instantiate_from_config=lambda part: part)
    with importable("youngsheen/SimVQ", bare=["taming"], main=given, lightning=lightning):
        from taming.models.vq import VQModel
        from taming.modules.vqvae.quantize import SimVQ

        config = {name: DDCONFIG[name] for name in DDCONFIG if name not in ("attn_resolutions", "dropout")}
        model = VQModel(config, nn.Identity(), SimVQ(32, 8))
    model.codebook_count = [0] * 32

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        reconstruction, _, losses = model(images)
        return reconstruction, losses.commitment

    return Case(model, run=run, pickles=False)


def optvq(kind: str) -> Case:
    """OptVQ's VQModelHF with its transport ("optvq") or nearest codes ("basevq"); a stand-in replaces its logger."""
    log = Namespace(add_scalar=nothing, add_histogram=nothing, total_steps=0)
    logger = module("optvq.utils.logger", log=log, GET_STATS=True)
    losses = module("optvq.losses.aeloss_disc", AELossWithDisc=nothing)
    parts = (logger, losses, module("optvq.utils", logger=logger))
    with importable("zbr17/OptVQ", bare=["src/optvq"], **{part.__name__: part for part in parts}):
        from optvq.models.vqgan_hf import VQModelHF

        config = DDCONFIG | dict(z_channels=8)
        model = VQModelHF(config, config, {}, dict(n_e=32, e_dim=8), quantize_type=kind)

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        _, reconstruction = model(images)
        return reconstruction, images.new_zeros(())

    return Case(model, run=run, pickles=False)


def pytorch_vae() -> Case:
    """PyTorch-VAE's VQVAE; its encoder has two resolutions."""
    with importable("AntixK/PyTorch-VAE", bare=["models"]):
        import sys

        from models.base import BaseVAE

        sys.modules["models"].BaseVAE = BaseVAE
        from models.vq_vae import VQVAE

        model = VQVAE(3, 8, 32, [16, 16], img_size=32)

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        reconstruction, _, loss = model(images)
        return reconstruction, loss

    return Case(model, grids=(16, 8, 8), run=run, pickles=False)


def show_o() -> Case:
    """Show-o's MAGVITv2 at 32 px, made narrow."""
    import typing

    plain = module("models.modeling_utils", ConfigMixin=object, ModelMixin=nn.Module, register_to_config=lambda f: f)
    kinds = module("models.misc", List=typing.List)  # noqa: UP006
    with importable("showlab/Show-o", bare=["models"], **{part.__name__: part for part in (plain, kinds)}):
        from models import modeling_magvitv2 as code

        small = dict(ch=32, ch_mult=[1, 1, 2], num_res_blocks=[1, 1, 1], attn_resolutions=[], resolution=32)
        model = code.MAGVITv2.__new__(code.MAGVITv2)
        nn.Module.__init__(model)
        model.encoder = code.VQGANEncoder(**small, z_channels=5)
        model.decoder = code.VQGANDecoder(**small, z_channels=5)
        model.quantize = code.LFQuantizer(codebook_dim=5)

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        vectors, _ = model.encode(images)
        return model.decoder(vectors)["output"], images.new_zeros(())

    return Case(model, run=run, modes=("encoder",), forwards=False, pickles=False)


def unitok(codebooks: int = 1) -> Case:
    """UniTok's quantizer in a user's own autoencoder; the whole is below."""
    utils = module("utils", dist=Namespace(initialized=lambda: False))
    with importable("FoundationVision/UniTok", bare=["models"], utils=utils):
        from models.quant import VectorQuantizerM

        quantizer = VectorQuantizerM(32 * codebooks, 8, use_entropy_loss=True, num_codebooks=codebooks)
    return Case(Autoencoder(quantizer, tokens=True), pickles=False)


def whole_unitok() -> Case:
    """UniTok with its smallest encoder and decoder, ViTamin-base (190 million parameters), as it is; needs timm.

    The text tower, which no image passes, is a stand-in, and so are the modules that read command lines.
    """
    pytest.importorskip("timm", reason="timm is not installed (UniTok asks for 1.0.8)")
    tower = nn.Linear(1, 1)
    vars(tower).update(context_length=8, vocab_size=100, set_grad_checkpointing=nothing)
    stand_ins = {
        "utils": module("utils", __path__=[], dist=Namespace(initialized=lambda: False)),
        "utils.config": module("utils.config", Args=object),
        "open_clip": module("open_clip", __path__=[]),
        "open_clip.model": module("open_clip.model", _build_text_tower=lambda *_: tower),
    }
    sizes = dict(img_size=64, num_query=0, drop_path=0.0, grad_ckpt=False, embed_dim=64)
    codes = dict(vocab_size=64, vocab_width=64, num_codebooks=1, vq_beta=0.25, le=0.0, e_temp=0.01)
    text = dict.fromkeys(("text_width", "text_heads", "text_layers", "text_vocab_size", "text_context_length"), 1)
    with importable("FoundationVision/UniTok", bare=["models"], **stand_ins):
        from models.unitok import UniTok

        model = UniTok(Namespace(model="vitamin_base", quant_proj="attn", **sizes, **codes, **text))

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        output = model(images, len(images))
        return output["img_rec"], output["vq_loss"]

    settings: dict[str, Any] = dict(forward=lambda images, host: host(images, len(images)))
    settings["decode"] = lambda z_q, host: host.decoder(host.post_quant_proj(z_q.flatten(2).mT))
    settings["example"] = torch.rand(2, 3, 64, 64)
    tokens = lambda model, images: model.img_to_idx(images).view(len(images), 4, 4)  # noqa: E731
    return Case(
        model, size=64, grids=(16, 8, 4), run=run, own_tokens=tokens, pickles=False, settings=settings
    )  # fmt: skip


def laskin() -> Case:
    """MishaLaskin's VQVAE; its encoder has two resolutions, and its decoder takes the vectors."""
    with importable("MishaLaskin/vqvae"):
        from models.vqvae import VQVAE

        model = VQVAE(16, 8, 1, 32, 8, 0.25)

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        loss, reconstruction, _ = model(images)
        return reconstruction, loss

    settings = dict(quantizer="vector_quantization", parse=parse_loss_first)
    settings |= dict(decode=lambda z_q, host: host.decoder(z_q))
    return Case(model, grids=(16, 8, 8), run=run, pickles=False, settings=settings)


def ritheshkumar() -> Case:
    """ritheshkumar95's VectorQuantizedVAE: it quantizes in a method, and its decode takes indices."""
    with importable("ritheshkumar95/pytorch-vqvae"):
        from modules import VectorQuantizedVAE

        model = VectorQuantizedVAE(3, 16, 32)

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        reconstruction, latent, codes = model(images)
        return reconstruction, (codes - latent.detach()).square().mean() + (latent - codes.detach()).square().mean()

    settings = dict(quantizer="codebook.straight_through", parse=parse_without_indices)
    settings |= dict(decode=lambda z_q, host: host.decoder(z_q), decode_tokens="decode")
    return Case(
        model, grids=(16, 8, 8), run=run, pickles=False, settings=settings,
        own_tokens=lambda model, images: model.encode(images),
    )  # fmt: skip


def unleashing() -> Case:
    """unleashing-transformers' VQAutoEncoder, on the CPU."""
    pytest.importorskip("torch_fidelity")
    of_data = ("get_data_loaders", "BigDataset", "NoClassDataset", "get_datasets")
    of_logs = ("load_model", "load_stats", "log", "save_images")
    members = {"lpips": (), "utils.data_utils": of_data, "utils.log_utils": of_logs}
    stand_ins = {name: module(name, **dict.fromkeys(names, nothing)) for name, names in members.items()}
    with unscripted(), importable("samb-t/unleashing-transformers", bare=["models", "utils"], **stand_ins):
        from models.vqgan import VQAutoEncoder

        sizes = dict(n_channels=3, nf=32, res_blocks=1, codebook_size=32, emb_dim=8, ch_mult=[1, 1, 2], img_size=32)
        gumbel = dict(gumbel_straight_through=False, gumbel_kl_weight=1e-8)
        with patch.object(nn.Module, "cuda", lambda self: self):  # it puts one part on a GPU at once
            model = VQAutoEncoder(Namespace(**sizes, **gumbel, attn_resolutions=[], quantizer="nearest", beta=0.25))
    return Case(model, atol=1e-4, pickles=False, settings=BY_GENERATOR)


def codeformer() -> Case:
    """CodeFormer's VQAutoEncoder."""

    class Registry:
        @staticmethod
        def register() -> Callable[[Any], Any]:
            return lambda cls: cls

    utils = module("basicsr.utils", get_root_logger=nothing)
    registry = module("basicsr.utils.registry", ARCH_REGISTRY=Registry)
    stand_ins = {part.__name__: part for part in (utils, registry)}
    with unscripted(), importable("sczhou/CodeFormer", bare=["basicsr", "basicsr.archs"], **stand_ins):
        from basicsr.archs.vqgan_arch import VQAutoEncoder

        model = VQAutoEncoder(32, 32, [1, 1, 2], res_blocks=1, attn_resolutions=[], codebook_size=32, emb_dim=8)
    return Case(model, atol=1e-4, pickles=False, settings=BY_GENERATOR)


def min_dalle() -> Case:
    """minDALL-E's first stage, which is not made for training: no straight-through estimator, no loss."""
    omegaconf = pytest.importorskip("omegaconf")
    with importable("kakaobrain/minDALL-E", bare=["dalle", "dalle.models"]):
        from dalle.models.stage1.vqgan import VQGAN

        config = {name: DDCONFIG[name] for name in DDCONFIG if name != "dropout"}
        model = VQGAN(32, 8, omegaconf.OmegaConf.create(config | dict(pdrop=0.0)))

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        return model(images), images.new_zeros(())

    settings = dict(quantizer="quantize", parse=parse_channels_last)
    return Case(
        model, run=run, modes=("codebook", "both"), passes_gradient=False, pickles=False, settings=settings
    )  # fmt: skip


CHECKOUTS_BY_PARSE: dict[str, Callable[[], Case]] = {
    "movqgan": movq,
    "lg-vq": lg_vq,
    "simvq": simvq,
    "optvq": lambda: optvq("optvq"),
    "optvq-nearest": lambda: optvq("basevq"),
    "pytorch-vae": pytorch_vae,
    "show-o": show_o,
    "unitok": unitok,
    "laskin": laskin,
    "ritheshkumar": ritheshkumar,
    "unleashing-transformers": unleashing,
    "codeformer": codeformer,
    "min-dalle": min_dalle,
}
