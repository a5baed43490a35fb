"""Frozen networks, loaded from weight files whose hash is checked: judges, LPIPS and the perceptual loss."""
