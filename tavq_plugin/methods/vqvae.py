"""VQ-VAE: reconstruction and codebook loss only."""

from __future__ import annotations

from tavq_plugin.methods.base import Method


class VQVAEMethod(Method):
    """VQ-VAE (van den Oord et al., NeurIPS 2017, eq. 3): the recipe without its discriminator and perceptual loss.

    Our reading: the pixel loss and β are those of the recipe, as for all methods compared, not those of the paper.
    """

    name = "vqvae"
    adversarial = False
    perceptual = False
