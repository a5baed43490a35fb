"""Tiny hosts with random weights, one builder per host class; tests skip, visibly, if a package is absent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

DDCONFIG = dict(
    double_z=False, z_channels=8, resolution=32, in_channels=3, out_ch=3, ch=32, ch_mult=(1, 1, 2), num_res_blocks=1,
    attn_resolutions=[16], dropout=0.0,
)  # fmt: skip


def forward(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """A host's own forward: reconstruction and loss (0 where it has none)."""
    output = model(images)
    if hasattr(output, "sample"):
        return output.sample, output.commit_loss
    return output[0], output[1]


@dataclass
class Case:
    """A host and what its tests expect."""

    model: nn.Module
    size: int = 32  # pixels a side
    grids: tuple[int | tuple[int, int], ...] = (32, 16, 8)  # of the levels, fine → coarse; one number: square
    run: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]] = forward
    modes: tuple[str, ...] = ("encoder", "codebook", "both")  # the possible grad_to
    forwards: bool = True  # has a forward of its own that works
    decodes: bool = True  # from vectors to what `run` gives
    decodes_tokens: bool = True  # from all of its tokens to what `run` gives
    own_tokens: Callable[[nn.Module, Tensor], Tensor] | None = None  # the host's own method, put in one tensor
    atol: float = 1e-5  # of images; z + (e - z) rounds as coarsely as a latent that is large beside its codes
    one_table: bool = True  # the final vectors are rows of one table, not sums of several
    pickles: bool = True
    takes: Callable[[Tensor], Any] = lambda images: images  # what the host's forward takes for these images
    replaces_buffers: bool = False  # its training forward puts a new tensor in a buffer's place
    passes_gradient: bool = True  # from what `run` gives to the encoder, which a balance needs
    settings: dict[str, Any] = field(default_factory=dict)  # settings that wrap needs

    @property
    def images(self) -> Tensor:
        """Two images, always the same."""
        draw = torch.Generator().manual_seed(5)
        return torch.rand(2, 3, self.size, self.size, generator=draw) * 2 - 1


class Autoencoder(nn.Module):
    """A user's own host: three resolutions, some in-place activations, any quantizer; b 3 h w -> (b 3 h w, loss)."""

    def __init__(self, quantizer: nn.Module, width: int = 8, *, tokens: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.first = nn.Sequential(nn.Conv2d(8, 12, 4, 2, 1), nn.GroupNorm(4, 12), nn.SiLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(12, 16, 4, 2, 1), nn.ReLU())
        self.to_codes = nn.Conv2d(16, width, 1)
        self.vq, self.tokens = quantizer, tokens
        self.aside = nn.Conv2d(3, 2, 4, 2, 1)  # runs, but its output goes nowhere
        self.up = nn.Sequential(nn.Conv2d(width, 16, 1), nn.Upsample(scale_factor=4), nn.Conv2d(16, 3, 3, padding=1))

    def decode(self, z_q: Tensor) -> Tensor:
        return self.up(z_q)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z = self.to_codes(self.second(self.first(self.stem(images))))
        self.aside(images)
        h = z.shape[2]
        output = self.vq(rearrange(z, "b c h w -> b (h w) c") if self.tokens else z)
        z_q = rearrange(output[0], "b (h w) c -> b c h w", h=h) if self.tokens else output[0]
        losses = [part.mean() for part in output[1:] if isinstance(part, Tensor) and part.is_floating_point()]
        return self.decode(z_q), losses[0] if losses else z.new_zeros(())


def taming(kind: str) -> Case:
    """A taming VQGAN without Lightning."""
    pytest.importorskip("taming")
    from tavq_plugin.adapters.taming import VQGAN

    return Case(VQGAN(DDCONFIG, n_embed=32, embed_dim=8, kind=kind), modes=_taming_modes(kind))


def taming_lightning(kind: str) -> Case:
    """taming's own VQModel or GumbelVQ, through the opt-in import fix."""
    pytest.importorskip("taming")
    from tavq_plugin.adapters.taming import enable_legacy_imports

    with enable_legacy_imports():
        from taming.models.vqgan import GumbelVQ, VQModel

        loss = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}
        if kind == "vq":
            return Case(VQModel(DDCONFIG, loss, n_embed=32, embed_dim=8))
        schedule = {"target": "torch.nn.Identity"}
        model = GumbelVQ(DDCONFIG, loss, n_embed=32, embed_dim=8, temperature_scheduler_config=schedule)
        return Case(model, modes=_taming_modes(kind))


def _taming_modes(kind: str) -> tuple[str, ...]:
    return ("codebook", "both") if kind == "gumbel" else ("encoder", "codebook", "both")


def taming_inside() -> Case:
    """taming's quantizer in a user's own autoencoder."""
    pytest.importorskip("taming")
    from taming.modules.vqvae.quantize import VectorQuantizer2

    return Case(Autoencoder(VectorQuantizer2(32, 8, beta=0.25)))


def diffusers(norm: str = "group", **settings: Any) -> Case:
    """diffusers' VQModel with three resolutions; norm="spatial" makes it MoVQ, lookup_from_codebook=True aMUSEd's."""
    package = pytest.importorskip("diffusers")
    channels = (32, 32, 32) if norm == "spatial" else (16, 16, 32)
    model = package.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=channels, norm_num_groups=8, latent_channels=8, vq_embed_dim=8, num_vq_embeddings=32,
        norm_type=norm, **settings,
    )  # fmt: skip
    return Case(model)


def lucidrains(name: str, settings: dict[str, Any], *, width: int = 8, tokens: bool = False, **expected: Any) -> Case:
    """A quantizer of vector-quantize-pytorch in a user's own autoencoder."""
    package = pytest.importorskip("vector_quantize_pytorch")
    return Case(Autoencoder(getattr(package, name)(**settings), width, tokens=tokens), **expected)


def transformers(name: str) -> Case:
    """transformers' Chameleon, Janus or Emu3 tokenizer with three resolutions."""
    package = pytest.importorskip("transformers")
    sizes = dict(embed_dim=8, latent_channels=8, base_channels=32, channel_multiplier=[1, 1, 2], num_res_blocks=1)
    if name == "chameleon":
        from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

        config = package.ChameleonVQVAEConfig(**sizes, num_embeddings=32, resolution=32, attn_resolutions=[16])

        def encode(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
            output = model.encode(images)
            return output.quantized_last_hidden_state, output.embedding_loss

        return Case(ChameleonVQVAE(config), run=encode, forwards=False, decodes=False, decodes_tokens=False)
    if name == "janus":
        from transformers.models.janus.modeling_janus import JanusVQVAE

        return Case(JanusVQVAE(package.JanusVQVAEConfig(**sizes, num_embeddings=32, num_patches=8)))
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

    config = package.Emu3VQVAEConfig(
        **sizes, codebook_size=32, attn_resolutions=[2], hidden_size=64, num_attention_heads=2
    )

    def through(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = model.encode(images, image_sizes=torch.tensor([images.shape[-2:]] * len(images))).image_tokens
        pixels = model.decode(torch.stack(tokens))
        return pixels, images.new_zeros(())

    return Case(Emu3VQVAE(config), run=through, forwards=False, passes_gradient=False)  # tokens lie between


def monai() -> Case:
    """MONAI's VQVAE with two spatial dimensions and three downsamplings."""
    pytest.importorskip("monai")
    from monai.networks.nets.vqvae import VQVAE

    down, up = ((2, 4, 1, 1),) * 3, ((2, 4, 1, 1, 0),) * 3
    sizes = dict(
        channels=(16, 16, 16), num_res_channels=(16, 16, 16), num_res_layers=1, num_embeddings=32, embedding_dim=8
    )
    model = VQVAE(2, 3, 3, downsample_parameters=down, upsample_parameters=up, **sizes)
    own = dict(own_tokens=lambda model, images: model.index_quantize(images))
    return Case(model, grids=(16, 8, 4), modes=("encoder",), **own)


def muse() -> Case:
    """muse-maskgit-pytorch's VQGanVAE without its discriminator; its quantizer is an LFQ."""
    package = pytest.importorskip("muse_maskgit_pytorch")
    settings = dict(dim=16, layers=3, codebook_size=32, lfq_kwargs=dict(diversity_gamma=4.0), use_vgg_and_gan=False)

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        return model(images), images.new_zeros(())

    own = dict(own_tokens=lambda model, images: model.encode(images)[1])
    return Case(package.VQGanVAE(**settings), grids=(16, 8, 4), run=run, modes=("codebook", "both"), **own)


def pythae(*, ema: bool = False) -> Case:
    """pythae's VQVAE around a convolutional encoder and decoder of a user's own."""
    pytest.importorskip("pythae")
    from pythae.models import VQVAE, VQVAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
            self.first = nn.Sequential(nn.Conv2d(8, 12, 4, 2, 1), nn.ReLU())
            self.second = nn.Conv2d(12, 8, 4, 2, 1)

        def forward(self, images: Tensor) -> ModelOutput:
            return ModelOutput(embedding=self.second(self.first(self.stem(images))))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(8, 3, 3, padding=1))

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.up(z))

    config = VQVAEConfig(input_dim=(3, 32, 32), latent_dim=8, num_embeddings=32, use_ema=ema)

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        output = model({"data": images})
        return output.recon_x, output.vq_loss

    modes = ("encoder",) if ema else ("encoder", "codebook", "both")
    return Case(
        VQVAE(config, encoder=Encoder(), decoder=Decoder()), run=run, modes=modes, pickles=False,
        takes=lambda images: {"data": images}, replaces_buffers=ema,
    )  # fmt: skip


SCALES = dict(dim=8, codebook_size=32, scales=(1, 2, 4, 8), kmeans_init=False, accept_image_fmap=True)
HOSTS: dict[str, Callable[[], Case]] = {
    "taming-vq": lambda: taming("vq"),
    "taming-gumbel": lambda: taming("gumbel"),
    "taming-first": lambda: taming("first"),
    "taming-inside": taming_inside,
    "taming-lightning-vq": lambda: taming_lightning("vq"),
    "taming-lightning-gumbel": lambda: taming_lightning("gumbel"),
    "diffusers": diffusers,
    "diffusers-movq": lambda: diffusers("spatial"),
    "diffusers-amused": lambda: diffusers(lookup_from_codebook=True),
    "monai": monai,
    "muse": muse,
    "pythae": pythae,
    "pythae-ema": lambda: pythae(ema=True),
    "lucidrains-vq": lambda: lucidrains(
        "VectorQuantize", dict(dim=8, codebook_size=32), tokens=True, modes=("encoder",)
    ),
    "lucidrains-vq-learnt": lambda: lucidrains(
        "VectorQuantize",
        dict(dim=8, codebook_size=32, accept_image_fmap=True, learnable_codebook=True, ema_update=False),
    ),
    "lucidrains-vq-projected": lambda: lucidrains(
        "VectorQuantize", dict(dim=8, codebook_size=32, codebook_dim=4, use_cosine_sim=True), tokens=True,
        modes=("codebook", "both"),
    ),
    "lucidrains-residual": lambda: lucidrains(
        "ResidualVQ", dict(dim=8, codebook_size=32, num_quantizers=3), tokens=True, modes=("encoder",), one_table=False
    ),
    "lucidrains-residual-learnt": lambda: lucidrains(
        "ResidualVQ", dict(dim=8, codebook_size=32, num_quantizers=3, learnable_codebook=True, ema_update=False),
        tokens=True, one_table=False,
    ),
    "lucidrains-hierarchical": lambda: lucidrains("HierarchicalVQ", SCALES, modes=("encoder",), one_table=False),
    "lucidrains-fsq": lambda: lucidrains("FSQ", dict(levels=[5, 4, 3]), width=3, modes=("encoder",)),
    "lucidrains-fsq-projected": lambda: lucidrains("FSQ", dict(levels=[5, 4, 3], dim=8), modes=("codebook", "both")),
    "lucidrains-lfq": lambda: lucidrains("LFQ", dict(codebook_size=32, dim=5), width=5, modes=("encoder",)),
    "lucidrains-simvq": lambda: lucidrains("SimVQ", dict(dim=8, codebook_size=32, channel_first=True)),
    "transformers-chameleon": lambda: transformers("chameleon"),
    "transformers-janus": lambda: transformers("janus"),
    "transformers-emu3": lambda: transformers("emu3"),
}  # fmt: skip


def build(name: str) -> Case:
    """A case by name, from a fixed seed, in training mode."""
    torch.manual_seed(0)
    case = HOSTS[name]()
    case.model.train()
    return case


def tiny(name: str) -> nn.Module:
    """The host alone."""
    return build(name).model
