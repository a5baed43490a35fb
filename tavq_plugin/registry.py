"""Which adapter speaks to which host or quantizer: class path → "module:Class", as strings; nothing imported early."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from tavq_plugin.contract import Adapter, Reading

_TAMING = "tavq_plugin.adapters.taming"
_DIFFUSERS = "tavq_plugin.adapters.diffusers_vq"
_LUCIDRAINS = "tavq_plugin.adapters.vector_quantize"
_TRANSFORMERS = "tavq_plugin.adapters.transformers_vq"

# hosts whose forward, decode or probe differs from `tavq_plugin.host.Host`'s
HOSTS = {
    "taming.models.vqgan.VQModel": f"{_TAMING}:TamingVQGAN",
    "tavq_plugin.adapters.taming.VQGAN": f"{_TAMING}:TamingVQGAN",
    "diffusers.models.autoencoders.vq_model.VQModel": f"{_DIFFUSERS}:DiffusersVQ",
    "transformers.models.chameleon.modeling_chameleon.ChameleonVQVAE": f"{_TRANSFORMERS}:Chameleon",
    "transformers.models.janus.modeling_janus.JanusVQVAE": f"{_TRANSFORMERS}:Janus",
    "transformers.models.emu3.modeling_emu3.Emu3VQVAE": f"{_TRANSFORMERS}:Emu3",
}

# quantizers, inside whatever autoencoder
QUANTIZERS = {
    "taming.modules.vqvae.quantize.VectorQuantizer": f"{_TAMING}:TamingReading",
    "taming.modules.vqvae.quantize.VectorQuantizer2": f"{_TAMING}:TamingReading",
    "taming.modules.vqvae.quantize.GumbelQuantize": f"{_TAMING}:TamingReading",
    "diffusers.models.autoencoders.vae.VectorQuantizer": f"{_DIFFUSERS}:DiffusersReading",
    "vector_quantize_pytorch.vector_quantize_pytorch.VectorQuantize": f"{_LUCIDRAINS}:VectorQuantizeReading",
    "vector_quantize_pytorch.residual_vq.ResidualVQ": f"{_LUCIDRAINS}:ResidualReading",
    "vector_quantize_pytorch.hierarchical_vq.HierarchicalVQ": f"{_LUCIDRAINS}:HierarchicalReading",
    "vector_quantize_pytorch.finite_scalar_quantization.FSQ": f"{_LUCIDRAINS}:FSQReading",
    "vector_quantize_pytorch.lookup_free_quantization.LFQ": f"{_LUCIDRAINS}:LFQReading",
    "vector_quantize_pytorch.sim_vq.SimVQ": f"{_LUCIDRAINS}:SimVQReading",
    "transformers.models.chameleon.modeling_chameleon.ChameleonVQVAEVectorQuantizer": f"{_TRANSFORMERS}:VQReading",
    "transformers.models.janus.modeling_janus.JanusVQVAEVectorQuantizer": f"{_TRANSFORMERS}:VQReading",
    "transformers.models.emu3.modeling_emu3.Emu3VQVAEVectorQuantizer": f"{_TRANSFORMERS}:Emu3Reading",
}


def adapter_for(host: nn.Module) -> type[Adapter] | None:
    """The adapter of a host's class or of the nearest class it descends from; None where none is known.

    >>> adapter_for(nn.Linear(1, 1)) is None
    True
    """
    return _nearest(host, HOSTS)


def reading_for(quantizer: nn.Module) -> type[Reading] | None:
    """The reading of a quantizer's class or of the nearest class it descends from; None where none is known.

    >>> reading_for(nn.Embedding(1, 1)) is None
    True
    """
    return _nearest(quantizer, QUANTIZERS)


def known_quantizers(host: nn.Module) -> list[str]:
    """Paths of the quantizers in a host that have a reading; those inside another are left out.

    >>> known_quantizers(nn.Sequential(nn.Linear(1, 1)))
    []
    """
    paths: list[str] = []
    for path, module in host.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in paths)
        if path and not inside and reading_for(module) is not None:
            paths.append(path)
    return paths


def _nearest(module: nn.Module, table: dict[str, str]) -> Any:
    for cls in type(module).__mro__:
        target = table.get(f"{cls.__module__}.{cls.__qualname__}")
        if target is not None:
            source, name = target.split(":")
            return getattr(import_module(source), name)
    return None
