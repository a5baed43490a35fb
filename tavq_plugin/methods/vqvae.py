"""VQ-VAE: reconstruction and codebook loss only."""

from __future__ import annotations

from tavq_plugin.methods.base import Method


class VQVAEMethod(Method):
    """VQ-VAE (van den Oord et al., NeurIPS 2017, eq. 3): the recipe without its discriminator and perceptual loss.

    Our reading: the pixel loss and β are the recipe's, as for all methods, not the paper's.
    """

    name = "vqvae"
    adversarial = False
    perceptual = False
