"""Wrap a VQGAN and its checkpoint, align it for a few steps, save both and load them; runs offline on a CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import tavq_plugin as tavq
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.io.convert_checkpoint import convert_checkpoint
from tavq_plugin.pixels import to_float
from tavq_plugin.training.build_host import small_vqgan


def write_old_checkpoint(path: Path) -> Path:
    """A checkpoint as taming writes it; stands for your own `last.ckpt`."""
    torch.manual_seed(0)
    torch.save({"global_step": 0, "state_dict": small_vqgan(32).state_dict()}, path)
    return path


def main(steps: int = 20) -> tavq.Codes:
    """Convert, wrap, train, save and load; returns the codes of the loaded tokenizer."""
    images, texts, _ = scenes(8, seed=0, resolution=32)
    images, texts = to_float(images), list(texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # the same as `tavq convert-checkpoint last.ckpt`: no code in the file is run
        weights, description = convert_checkpoint(write_old_checkpoint(folder / "last.ckpt"))
        vqgan = small_vqgan(32)
        vqgan.load_state_dict(load_file(weights))
        print(f"read {weights.name} and {description.name}")

        with torch.no_grad():
            alone = vqgan(images)[0]
        tokenizer = tavq.wrap(vqgan)
        print(tokenizer)
        with torch.no_grad():
            output, _ = tokenizer(images)
        assert torch.equal(output[0], alone)  # the host's output does not change by one bit

        optimizer = torch.optim.Adam(vqgan.parameters(), lr=4e-4)
        align = tavq.attach(tokenizer, optimizer, total_steps=steps)
        for step in range(steps):
            rows = [(4 * step + i) % len(images) for i in range(4)]
            (reconstruction, quantizer_loss), _ = tokenizer(images[rows])
            own = (reconstruction - images[rows]).abs().mean() + quantizer_loss
            added = align([texts[row] for row in rows])  # holds codes.loss already
            optimizer.zero_grad()
            (own + added).backward()
            optimizer.step()
            if step in (0, steps - 1):
                print(f"step {step}: loss of the loop {own.item():.4f}, added {added.item():.4f}")
        tavq.detach(vqgan)

        save_file(vqgan.state_dict(), folder / "host.safetensors")  # loads into the original codebase
        save_file(tokenizer.hierarchy.state_dict(), folder / "tavq.safetensors")  # levels 1-2
        loaded = tavq.wrap(small_vqgan(32))
        loaded.host.load_state_dict(load_file(folder / "host.safetensors"))
        loaded.hierarchy.load_state_dict(load_file(folder / "tavq.safetensors"))

    with torch.no_grad():
        codes, expected = loaded.encode(images), tokenizer.encode(images)
    for level, same in zip(codes.levels, expected.levels, strict=True):
        assert torch.equal(level.indices, same.indices)
        print(f"indices {tuple(level.indices.shape)}, {level.indices.unique().numel()} codes in use")
    return codes


if __name__ == "__main__":
    main()
