"""taming's VQModel trained by Lightning 2 with text alignment, on drawn scenes; runs offline, a few steps on a CPU."""

from __future__ import annotations

import tempfile
from unittest.mock import patch

import pytorch_lightning as pl
from einops import rearrange
from tavq_plugin.adapters.taming import enable_legacy_imports
from tavq_plugin.adapters.taming_lightning import Lightning2
from torch import nn
from torch.utils.data import DataLoader

import tavq_plugin as tavq
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.pixels import to_float

with enable_legacy_imports():
    from taming.models.vqgan import VQModel

DDCONFIG = {
    "double_z": False, "z_channels": 32, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": (1, 2, 2), "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


class Model(Lightning2, VQModel):
    """taming's model with the alignment loss."""

    def configure_optimizers(self):
        """taming's own two optimizers; the new parameters join the first."""
        optimizers, schedules = super().configure_optimizers()
        self.align = tavq.attach(self, optimizers[0])
        return optimizers, schedules


def data(n: int = 8) -> DataLoader:
    """Drawn scenes as taming's datasets give them: images b h w c, texts."""
    images, texts, _ = scenes(n, seed=0, resolution=32)
    pixels = rearrange(to_float(images), "b c h w -> b h w c")
    return DataLoader([{"image": x, "text": t} for x, t in zip(pixels, texts, strict=True)], batch_size=4)


def main(steps: int = 20) -> Model:
    """Train for `steps` batches; returns the model."""
    loss = {"disc_start": steps // 2, "perceptual_weight": 0.0, "disc_num_layers": 1, "disc_ndf": 16}
    config = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": loss}
    # taming builds LPIPS, which downloads a VGG, even if its weight is 0
    with enable_legacy_imports(), patch("taming.modules.losses.vqperceptual.LPIPS", nn.Identity):
        model = Model(DDCONFIG, config, n_embed=128, embed_dim=32)
    model.learning_rate = 4e-4
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu", default_root_dir=folder, max_epochs=-1, max_steps=2 * steps, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, data())
    print({name: [round(value, 4) for value in values.flatten().tolist()] for name, values in model.align.last.items()})
    return model


if __name__ == "__main__":
    main()
