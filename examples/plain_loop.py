"""A plain training loop with text alignment, on drawn scenes; runs offline, a few steps on a CPU."""

from __future__ import annotations

import torch

import tavq_plugin as tavq
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.pixels import to_float
from tavq_plugin.training.build_host import small_vqgan


def main(steps: int = 20) -> list[float]:
    """Train a small VQGAN; returns the alignment's loss at each step."""
    images, texts, _ = scenes(32, seed=0, resolution=32)
    images, texts = to_float(images), list(texts)
    torch.manual_seed(0)
    vqgan = small_vqgan(32)
    optimizer = torch.optim.Adam(vqgan.parameters(), lr=4e-4)
    align = tavq.attach(vqgan, optimizer, weight=0.3)  # added
    losses = []
    for step in range(steps):
        rows = [(4 * step + i) % len(images) for i in range(4)]
        reconstruction, quantizer_loss = vqgan(images[rows])
        loss = (reconstruction - images[rows]).abs().mean() + quantizer_loss
        added = align([texts[row] for row in rows])  # added
        losses.append(added.item())
        optimizer.zero_grad()
        (loss + added).backward()  # changed
        optimizer.step()
    tavq.detach(vqgan)
    print(f"alignment {losses[0]:.4f} -> {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
