"""Compare `decode` of a host's quantized vectors with the host's own output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tavq_plugin.hosts.hooks import tapped
from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.hosts.trial_run import count_calls, describe, require_one_call, whole_run

TOLERANCE = 1e-2  # largest difference of the images, as a share of the largest pixel


def decode_problem(adapter: Adapter, images: Tensor) -> str:
    """What is wrong with `decode`, in eval mode; empty if it agrees with the host, or if nothing can be compared.

    Nothing can be compared where the host has no working forward or decode, returns no image, or is random in eval
    mode.
    Raises ValueError if the host's own forward calls its quantizer several times.
    """
    host = adapter.model
    try:
        with tapped(host, at=[adapter.quantizer]) as recorder, count_calls(host, [adapter.quantizer]) as calls:
            output = whole_run(adapter)(images)
        if calls:
            call = recorder.take()[adapter.quantizer]
            decoded = adapter.decode(adapter.parse(call.z_in, call.output).vectors)
    except Exception:  # the host may raise anything: then there is nothing to compare, and its own call says why
        return ""
    require_one_call(adapter.quantizer, calls)
    if not calls or not isinstance(decoded, Tensor):
        return ""
    own = [image for image in _tensors(output) if image.shape == decoded.shape and image.is_floating_point()]
    if not own or any(_agree(decoded, image) for image in own):
        return ""
    again = _tensors(whole_run(adapter)(images))
    if not any(torch.equal(image, other) for image in own for other in again if other.shape == image.shape):
        return ""  # random: no two calls agree
    nearest = min(float((decoded - image).abs().max()) for image in own)
    return (
        f"decode gives another image than the host: decode of the vectors that {adapter.quantizer!r} returned differs "
        f"from the host's own output, {describe(output)}, by {nearest:.3g}. The host's decode reads something else "
        "than these vectors (unquantized latents, indices, several maps): give decode=, a function of the vectors "
        "that returns the image, or write an adapter for it, with a decode of its own"
    )


def _tensors(output: Any) -> list[Tensor]:
    """All tensors in a host's output."""
    if not isinstance(output, Tensor | tuple | list | dict) and hasattr(output, "__dict__"):
        output = vars(output)
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _agree(decoded: Tensor, own: Tensor) -> bool:
    """Whether two images are equal, up to rounding, or once decoded ones are clamped to the range of the host's."""
    clamped = decoded.clamp(own.min(), own.max())
    allowed = TOLERANCE * own.abs().max() + 32 * torch.finfo(own.dtype).eps
    return bool((clamped - own).abs().max() <= allowed)
