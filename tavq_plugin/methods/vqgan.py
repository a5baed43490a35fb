"""VQGAN: the recipe and nothing else."""

from __future__ import annotations

from tavq_plugin.methods.base import Method


class VQGANMethod(Method):
    """VQGAN (Esser et al., CVPR 2021, eq. 4–7): VQ-VAE with a perceptual loss and a patch discriminator.

    The recipe holds all of it, so the method adds nothing.
    """

    name = "vqgan"
