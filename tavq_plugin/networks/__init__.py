"""Frozen networks, loaded from hashed weight files: judges, LPIPS and the perceptual loss."""
