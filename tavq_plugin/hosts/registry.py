"""Which adapter reads which host or quantizer: class path → "module:Class", as strings, imported when needed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from tavq_plugin.hosts.protocols import Adapter, QuantizerAdapter

_HERE = "tavq_plugin.adapters"
_TAMING = "tavq_plugin.adapters.taming"
_DIFFUSERS = "tavq_plugin.adapters.diffusers_vq"
_LUCIDRAINS = "tavq_plugin.adapters.vector_quantize"
_TRANSFORMERS = "tavq_plugin.adapters.transformers_vq"

# hosts whose taps, encode, decode or example images differ from those of `tavq_plugin.hosts.base.HostAdapter`
HOSTS = {
    "taming.models.vqgan.VQModel": f"{_TAMING}:TamingVQGAN",
    "tavq_plugin.adapters.taming.VQGAN": f"{_TAMING}:TamingVQGAN",
    "diffusers.models.autoencoders.vq_model.VQModel": f"{_DIFFUSERS}:DiffusersVQ",
    "transformers.models.chameleon.modeling_chameleon.ChameleonVQVAE": f"{_TRANSFORMERS}:Chameleon",
    "transformers.models.janus.modeling_janus.JanusVQVAE": f"{_TRANSFORMERS}:Janus",
    "transformers.models.emu3.modeling_emu3.Emu3VQVAE": f"{_TRANSFORMERS}:Emu3",
    "monai.networks.nets.vqvae.VQVAE": f"{_HERE}.monai_vqvae:MonaiVQVAE",
    "pythae.models.vq_vae.vq_vae_model.VQVAE": f"{_HERE}.pythae_vqvae:PythaeVQVAE",
    "ldm.models.autoencoder.VQModelInterface": f"{_HERE}.latent_diffusion:Interface",
    "models.vqvae.VQVAE": f"{_HERE}.var:VAR",
    "models.modeling_magvitv2.MAGVITv2": f"{_HERE}.show_o:MAGVITv2",
    "modeling.titok.TiTok": f"{_HERE}.titok:TiTok",
    "modules.Model": f"{_HERE}.cvq_vae:CVQ",
    "rqvae.models.rqvae.rqvae.RQVAE": f"{_HERE}.rq_vae:RQVAE",
    "enhancing.modules.stage1.vitvqgan.ViTVQ": f"{_HERE}.vit_vqgan:ViTVQGAN",
    "vqvae.VQVAE": f"{_HERE}.rosinality:VQVAE2",
}

# quantizers, inside any autoencoder
QUANTIZERS = {
    "taming.modules.vqvae.quantize.VectorQuantizer": f"{_TAMING}:TamingQuantizer",
    "taming.modules.vqvae.quantize.VectorQuantizer2": f"{_TAMING}:TamingQuantizer",
    "taming.modules.vqvae.quantize.GumbelQuantize": f"{_TAMING}:TamingQuantizer",
    "diffusers.models.autoencoders.vae.VectorQuantizer": f"{_DIFFUSERS}:DiffusersQuantizer",
    "vector_quantize_pytorch.vector_quantize_pytorch.VectorQuantize": f"{_LUCIDRAINS}:VectorQuantizeQuantizer",
    "vector_quantize_pytorch.residual_vq.ResidualVQ": f"{_LUCIDRAINS}:ResidualQuantizer",
    "vector_quantize_pytorch.hierarchical_vq.HierarchicalVQ": f"{_LUCIDRAINS}:HierarchicalQuantizer",
    "vector_quantize_pytorch.finite_scalar_quantization.FSQ": f"{_LUCIDRAINS}:FSQQuantizer",
    "vector_quantize_pytorch.lookup_free_quantization.LFQ": f"{_LUCIDRAINS}:LFQQuantizer",
    "vector_quantize_pytorch.sim_vq.SimVQ": f"{_LUCIDRAINS}:SimVQQuantizer",
    "transformers.models.chameleon.modeling_chameleon.ChameleonVQVAEVectorQuantizer": f"{_TRANSFORMERS}:VQQuantizer",
    "transformers.models.janus.modeling_janus.JanusVQVAEVectorQuantizer": f"{_TRANSFORMERS}:VQQuantizer",
    "transformers.models.emu3.modeling_emu3.Emu3VQVAEVectorQuantizer": f"{_TRANSFORMERS}:Emu3Quantizer",
    "monai.networks.layers.vector_quantizer.EMAQuantizer": f"{_HERE}.monai_vqvae:EMAQuantizer",
    "pythae.models.vq_vae.vq_vae_utils.Quantizer": f"{_HERE}.pythae_vqvae:PythaeQuantizer",
    "pythae.models.vq_vae.vq_vae_utils.QuantizerEMA": f"{_HERE}.pythae_vqvae:PythaeQuantizer",
    "tokenizer.tokenizer_image.vq_model.VectorQuantizer": f"{_HERE}.llamagen:LlamaGenQuantizer",
    "src.Open_MAGVIT2.modules.vqvae.lookup_free_quantize.LFQ": f"{_HERE}.seed_voken:MagvitLFQQuantizer",
    "src.IBQ.modules.vqvae.quantize.IndexPropagationQuantize": f"{_HERE}.seed_voken:IBQQuantizer",
    "models.quant.VectorQuantizer2": f"{_HERE}.var:VARQuantizer",
    "models.quant.VectorQuantizerM": f"{_HERE}.unitok:UniTokQuantizer",
    "modeling.quantizer.quantizer.VectorQuantizer": f"{_HERE}.titok:TiTokQuantizer",
    "quantise.VectorQuantiser": f"{_HERE}.cvq_vae:CVQQuantizer",
    "rqvae.models.rqvae.quantizations.RQBottleneck": f"{_HERE}.rq_vae:RQQuantizer",
    "enhancing.modules.stage1.quantizers.VectorQuantizer": f"{_HERE}.vit_vqgan:ViTQuantizer",
    "enhancing.modules.stage1.quantizers.GumbelQuantizer": f"{_HERE}.vit_vqgan:ViTQuantizer",
    "codebook.Codebook": f"{_HERE}.dome272:CodebookQuantizer",
    "vqvae.Quantize": f"{_HERE}.rosinality:RosinalityQuantizer",
    "taming.modules.vqvae.quantize.SimVQ": f"{_HERE}.simvq:SimVQHostQuantizer",
    "optvq.models.quantizer.VectorQuantizer": f"{_HERE}.optvq:OptVQQuantizer",
    "models.vq_vae.VectorQuantizer": f"{_HERE}.pytorch_vae:PyTorchVAEQuantizer",
    "models.modeling_magvitv2.LFQuantizer": f"{_HERE}.show_o:SignQuantizer",
}


def adapter_for(host: nn.Module) -> Callable[..., Adapter] | None:
    """The adapter class of a host's class, or of the nearest class it descends from; None if none is known.

    >>> adapter_for(nn.Linear(1, 1)) is None
    True
    """
    return _registered(host, HOSTS)


def quantizer_adapter_for(quantizer: nn.Module) -> Callable[[nn.Module], QuantizerAdapter] | None:
    """The adapter class of a quantizer's class, or of the nearest class it descends from; None if none is known.

    >>> quantizer_adapter_for(nn.Embedding(1, 1)) is None
    True
    """
    return _registered(quantizer, QUANTIZERS)


def known_quantizers(host: nn.Module) -> list[str]:
    """Paths of the quantizers in a host that an adapter reads; those inside another quantizer are left out.

    >>> known_quantizers(nn.Sequential(nn.Linear(1, 1)))
    []
    """
    paths: list[str] = []
    for path, module in host.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in paths)
        if path and not inside and quantizer_adapter_for(module) is not None:
            paths.append(path)
    return paths


def _registered(module: nn.Module, table: dict[str, str]) -> Any:
    for cls in type(module).__mro__:
        target = table.get(f"{cls.__module__}.{cls.__qualname__}")
        if target is not None:
            source, name = target.split(":")
            found = getattr(import_module(source), name)
            # a user's own class may have a path such as modules.Model, so those adapters also check its attributes
            if not hasattr(found, "recognizes") or found.recognizes(module):
                return found
    return None
