"""Reconstruction quality that needs no weights."""

from __future__ import annotations

import torch
from torch import Tensor

from tavq_plugin.pixels import to_uint8

WINDOW = 11  # pixels: SSIM's Gaussian window, σ 1.5
BORDER = WINDOW // 2  # pixels at each side whose window leaves the image


def psnr(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, dB, after clamping and rounding to 8 bit; b c h w -> b.

    A perfect image counts as if one of its sub-pixels were off by one: this is the least error that 8 bits can show, so
    that the value and the mean over images are finite.

    >>> psnr(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 4 / 255)).round(decimals=2)
    tensor([42.1100])
    >>> psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)).round(decimals=2)
    tensor([70.9600])
    """
    difference = to_uint8(reconstruction).double() - to_uint8(images).double()
    error = difference.square().flatten(1).mean(1).clamp(min=1 / difference[0].numel())
    return (10 * torch.log10(255**2 / error)).float()


def ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Structural similarity of each image, Gaussian window of 11, after rounding to 8 bit; b c h w -> b.

    As the standard has it (and scikit-image with gaussian_weights, sigma 1.5, use_sample_covariance=False): the mean is
    over the windows that lie inside the image. torchmetrics' own mean also counts windows over reflected borders.
    Raises ValueError for images smaller than the window.
    """
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(
            f"SSIM has a window of {WINDOW} pixels and images are {tuple(images.shape[-2:])}: leave SSIM out, or give "
            "larger images"
        )
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, similarity = structural_similarity_index_measure(
        to_uint8(reconstruction).double(), to_uint8(images).double(), gaussian_kernel=True, kernel_size=WINDOW,
        sigma=1.5, data_range=255.0, reduction="none", return_full_image=True,
    )  # fmt: skip
    return similarity[..., BORDER:-BORDER, BORDER:-BORDER].flatten(1).mean(1).float()
