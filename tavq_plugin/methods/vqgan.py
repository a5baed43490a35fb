"""VQGAN: the recipe as it is."""

from __future__ import annotations

from tavq_plugin.methods.base import Method


class VQGANMethod(Method):
    """VQGAN (Esser et al., CVPR 2021, eq. 4–7): VQ-VAE with a perceptual loss and a patch discriminator.

    All of it is the recipe's own; a method without terms of its own is this.
    """

    name = "vqgan"
