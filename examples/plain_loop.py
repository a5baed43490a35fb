"""A plain training loop with text alignment, on drawn scenes; runs offline, a few steps on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import tavq_plugin as tavq
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.pixels import to_float
from tavq_plugin.training.build_host import small_vqgan


def losses(vqgan: nn.Module, align: tavq.Attachment, images: Tensor, texts: Sequence) -> tuple[Tensor, Tensor]:
    """The loop's own loss, as it was, and what is added to it: the alignment and the added levels' own loss."""
    reconstruction, quantizer_loss = vqgan(images)
    own = (reconstruction - images).abs().mean() + quantizer_loss
    return own, align(texts)  # added


def main(steps: int = 20) -> list[float]:
    """Train a small VQGAN; returns the alignment's value at each step, without the added levels' own loss."""
    images, texts, _ = scenes(32, seed=0, resolution=32)
    images, texts = to_float(images), list(texts)
    torch.manual_seed(0)
    vqgan = small_vqgan(32)
    optimizer = torch.optim.Adam(vqgan.parameters(), lr=4e-4)
    align = tavq.attach(vqgan, optimizer, total_steps=steps)  # added
    print(align.summary())
    values = []
    for step in range(steps):
        rows = [(4 * step + i) % len(images) for i in range(4)]
        own, added = losses(vqgan, align, images[rows], [texts[row] for row in rows])
        optimizer.zero_grad()
        (own + added).backward()  # changed
        optimizer.step()
        # `added` is one scalar of two parts; each stands by name in `align.last`
        parts = {name: align.last[name].item() for name in ("alignment", "codebook_loss")}
        values.append(parts["alignment"])
        if step in (0, steps - 1):
            print(f"step {step}: loss of the loop {own.item():.4f}, added {added.item():.4f}, of which " +
                  ", ".join(f"{name} {value:.4f}" for name, value in parts.items()))  # fmt: skip
    tavq.detach(vqgan)
    return values


if __name__ == "__main__":
    main()
