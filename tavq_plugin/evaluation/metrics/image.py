"""Reconstruction quality that needs no weights."""

from __future__ import annotations

import torch
from torch import Tensor

from tavq_plugin.pixels import to_uint8

WINDOW = 11  # pixels: SSIM's Gaussian window, σ 1.5


def psnr(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, dB, after clamping and rounding to 8 bit; b c h w -> b.

    >>> psnr(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 4 / 255)).round(decimals=2)
    tensor([42.1100])
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    pairs = zip(to_uint8(reconstruction).float(), to_uint8(images).float(), strict=True)
    return torch.stack([peak_signal_noise_ratio(ours, truth, data_range=255.0) for ours, truth in pairs])


def ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Structural similarity of each image, Gaussian window of 11, after rounding to 8 bit; b c h w -> b.

    Raises ValueError for images smaller than the window.
    """
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(
            f"SSIM has a window of {WINDOW} pixels and images are {tuple(images.shape[-2:])}: leave SSIM out, or give "
            "larger images"
        )
    from torchmetrics.functional.image import structural_similarity_index_measure

    similarity = structural_similarity_index_measure(
        to_uint8(reconstruction).double(), to_uint8(images).double(),
        gaussian_kernel=True, kernel_size=WINDOW, sigma=1.5, data_range=255.0, reduction="none",
    )  # fmt: skip
    assert isinstance(similarity, Tensor)  # it is a pair only if the full image is requested too
    return similarity.reshape(len(images)).float()
