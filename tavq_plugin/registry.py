"""Which adapter speaks to which host: class path → "module:Class", as strings; nothing imported until asked."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from tavq_plugin.contract import Adapter

HOSTS = {
    "taming.models.vqgan.VQModel": "tavq_plugin.adapters.taming:TamingVQGAN",
    "tavq_plugin.adapters.taming.VQGAN": "tavq_plugin.adapters.taming:TamingVQGAN",
    "diffusers.models.autoencoders.vq_model.VQModel": "tavq_plugin.adapters.diffusers_vq:DiffusersVQ",
}


def adapter_for(host: nn.Module) -> type[Adapter] | None:
    """The adapter of a host's class or of the nearest class it descends from; None where none is known.

    >>> adapter_for(nn.Linear(1, 1)) is None
    True
    """
    for cls in type(host).__mro__:
        target = HOSTS.get(f"{cls.__module__}.{cls.__qualname__}")
        if target is not None:
            module, name = target.split(":")
            return getattr(import_module(module), name)
    return None
