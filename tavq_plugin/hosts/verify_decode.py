"""Compare `decode` of a host's quantized vectors with the host's own output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tavq_plugin.hosts.hooks import tapped
from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.hosts.token_vectors import image_of_tokens, tokens_of_images
from tavq_plugin.hosts.trial_run import count_calls, describe, require_one_call, whole_run

TOLERANCE = 1e-2  # largest difference of the images, as a share of the largest pixel


def decode_problem(adapter: Adapter, images: Tensor) -> str:
    """What is wrong with `decode`, in eval mode; empty if it agrees with the host, or if nothing can be compared.

    Nothing can be compared where the host has no working forward or no decode, returns no image, or is random in eval
    mode.
    Raises ValueError if the host's own forward calls its quantizer several times.
    """
    host = adapter.model
    try:
        with tapped(host, at=[adapter.quantizer]) as recorder, count_calls(host, [adapter.quantizer]) as calls:
            output = whole_run(adapter)(images)
        call = recorder.take()[adapter.quantizer] if calls else None
    except Exception:  # the host may raise anything: then there is nothing to compare, and its own call says why
        return ""
    require_one_call(adapter.quantizer, calls)
    if call is None:
        return ""
    vectors = adapter.parse(call.z_in, call.output).vectors
    try:
        decoded = adapter.decode(vectors)
    except NotImplementedError:  # there is none; its own call says so
        return ""
    except Exception as error:  # the host's decode may raise anything
        return (
            f"decode of the quantized map, {describe(vectors)}, raises {type(error).__name__}: {error}. The host's "
            f"decode takes {_OTHERS}: {_MEND}"
        )
    nearest = _distance(adapter, images, decoded, output)
    if not nearest:
        return ""
    return (
        f"decode gives another image than the host: decode of the vectors that {adapter.quantizer!r} returned differs "
        f"from the host's own output, {describe(output)}, by {nearest:.3g}. The host's decode reads {_OTHERS}: {_MEND}"
    )


def own_tokens_problem(adapter: Adapter, images: Tensor) -> str:
    """What is wrong with the host's own way to tokens and back, in eval mode; empty if nothing is, or if it has none.

    Nothing is compared where the host has no working forward, or is random in eval mode.
    """
    if not hasattr(adapter, "decode_own_tokens"):
        return ""
    try:
        decoded = image_of_tokens(adapter, tokens_of_images(adapter, images))
    except Exception as error:  # the user's functions may raise anything
        return f"tokens cannot be decoded: {type(error).__name__}: {error}"
    try:
        output = whole_run(adapter)(images)
    except Exception:  # the host has no forward of its own, for one
        return ""
    nearest = _distance(adapter, images, decoded, output)
    if not nearest:
        return ""
    return (
        "tokens cannot be decoded: decode_tokens= of the host's tokens gives another image than the host: it differs "
        f"from the host's own output, {describe(output)}, by {nearest:.3g}. Let tokens= return all of the numbers, and "
        "decode_tokens= the image of them"
    )


_OTHERS = "something else than this map (unquantized latents, tokens b n c, indices, several maps)"
_MEND = (
    "give decode=, a function of the quantized map that returns the image, or write an adapter for it, with a decode "
    "of its own"
)


def _distance(adapter: Adapter, images: Tensor, decoded: object, output: Any) -> float:
    """How far an image is from the nearest one in the host's output; 0 if they agree, or cannot be compared."""
    if not isinstance(decoded, Tensor):
        return 0.0
    own = [image for image in _tensors(output) if image.shape == decoded.shape and image.is_floating_point()]
    if not own or any(_agree(decoded, image) for image in own):
        return 0.0
    again = _tensors(whole_run(adapter)(images))
    if not any(torch.equal(image, other) for image in own for other in again if other.shape == image.shape):
        return 0.0  # random: no two calls agree
    return min(float((decoded - image).abs().max()) for image in own)


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
