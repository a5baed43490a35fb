"""A hash of a tokenizer's weights, by which tokens are told from those of another codebook."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from tavq_plugin.hosts.tokenizer import Tokenizer


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of the names, shapes, types and values of the host's state and of the added levels'; 64 hex digits.

    It is the same for a run's folder and for what `Run.save_pretrained` writes of it, on any device.
    """
    digest = hashlib.sha256()
    for part, module in (("host", tokenizer.host), ("hierarchy", tokenizer.hierarchy)):
        for name, value in sorted(module.state_dict().items()):
            if isinstance(value, Tensor):
                digest.update(f"{part}.{name} {tuple(value.shape)} {value.dtype}\n".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
