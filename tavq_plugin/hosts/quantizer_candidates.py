"""Modules and methods of an unknown host that look like quantizers, for an error; nothing is inferred from them."""

from __future__ import annotations

import re

from torch import nn

from tavq_plugin.hosts.host_functions import own_methods, tensors_of

_NAMES = re.compile(r"quant|vq|codebook", re.IGNORECASE)
_SHOWN = 6


def quantizer_candidates(host: nn.Module) -> list[str]:
    """Paths with class and matrices, outermost first.

    >>> class VQ(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.table = nn.Embedding(16, 8)
    >>> quantizer_candidates(nn.Sequential(nn.Identity(), VQ()))
    ["'1' (VQ, with table.weight 16×8)"]
    """
    found: dict[str, str] = {}
    for path, module in host.named_modules():
        named = _NAMES.search(type(module).__name__) or _NAMES.search(path.rpartition(".")[2])
        has_parts = len(list(module.children())) > 0 or tensors_of(module)
        if path and named and has_parts and not any(path.startswith(f"{outer}.") for outer in found):
            if isinstance(module, nn.Conv2d | nn.Linear):  # taming's quant_conv
                continue
            tables = [
                f"{name} {'×'.join(map(str, tensor.shape))}" for name, tensor in tensors_of(module) if tensor.ndim == 2
            ]
            holds = f", with {', '.join(tables[:3])}" if tables else ""
            found[path] = f"{path!r} ({type(module).__name__}{holds})"
    methods = [f"{name!r} (a method)" for name in own_methods(host) if _NAMES.search(name)]
    return [*found.values(), *methods][:_SHOWN]
