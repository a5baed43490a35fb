"""Lightning 2 trains taming's VQModel and GumbelVQ with the loss, and counts steps as taming does."""

from unittest.mock import patch

import pytest
import torch
from helpers.conformance import texts
from helpers.tiny_hosts import DDCONFIG, tiny
from torch import nn

import tavq_plugin as tavq
from tavq_plugin.io.convert_checkpoint import convert_checkpoint

pl = pytest.importorskip("pytorch_lightning")
pytest.importorskip("taming")

DISC_START = 3
IMAGES = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1


def build(kind: str, added: bool = True):
    """taming's own class with the mixin, its own loss, and an attachment."""
    from tavq_plugin.adapters.taming import enable_legacy_imports
    from tavq_plugin.adapters.taming_lightning import Lightning2

    with enable_legacy_imports(), patch("taming.modules.losses.vqperceptual.LPIPS", nn.Identity):
        from taming.models.vqgan import GumbelVQ, VQModel

        class Mine(Lightning2, VQModel if kind == "vq" else GumbelVQ):
            seen: list

            def configure_optimizers(self):
                optimizers, schedules = super().configure_optimizers()
                if added:
                    self.align = tavq.attach(self, optimizers[0], text_dim=6)
                return optimizers, schedules

            def log_dict(self, dictionary, **options):
                super().log_dict(dictionary, **options)
                self.seen.append({name: float(value) for name, value in dictionary.items()})

        params = {"disc_start": DISC_START, "perceptual_weight": 0.0, "disc_num_layers": 1, "disc_ndf": 8}
        loss = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": params}
        more = {} if kind == "vq" else {"temperature_scheduler_config": {"target": "torch.nn.Identity"}}
        torch.manual_seed(0)
        model = Mine(DDCONFIG, loss, n_embed=32, embed_dim=8, **more)
    if kind == "gumbel":
        model.temperature_scheduler.forward = lambda step: 1.0 / (1 + step)
    model.learning_rate, model.seen = 1e-3, []
    return model


def fit(model, folder, batches, **options):
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
    trainer = pl.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, max_epochs=1, **quiet, **options)
    train = torch.utils.data.DataLoader([{"image": IMAGES, "text": texts()}] * batches, batch_size=None)
    trainer.fit(model, train, train if options.get("limit_val_batches") else None, ckpt_path=None)
    return trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["vq", "gumbel"])
def test_the_discriminator_starts_at_disc_start(kind, tmp_path):
    model = build(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = fit(model, tmp_path, 5, enable_checkpointing=False, limit_val_batches=1)
    factors = [logged["train/disc_factor"] for logged in model.seen if "train/disc_factor" in logged]
    assert factors == [0.0] * DISC_START + [1.0] * (5 - DISC_START)
    assert trainer.global_step == 10 and model.global_step == 5
    assert [name for logged in model.seen for name in logged].count("val/rec_loss") == 1
    # only weights: at first a hinge loss pulls the discriminator's last bias up as hard as down
    weights = {name: p for name, p in model.named_parameters() if name.endswith("weight")}
    assert not [name for name, p in weights.items() if torch.equal(before[name], p)]
    if kind == "gumbel":
        assert model.quantize.temperature == 1 / 5
    tavq.detach(model)


@pytest.mark.filterwarnings("ignore")
def test_the_checkpoint_holds_tamings_state_and_the_plug_ins(tmp_path):
    model = build("vq")
    fit(model, tmp_path, 2, enable_checkpointing=False)
    trained = {name: value.clone() for name, value in model.align.state_dict().items()}
    model.trainer.save_checkpoint(tmp_path / "last.ckpt")
    tavq.detach(model)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    host = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith("loss.")}
    tiny("taming-lightning-vq").load_state_dict(host, strict=True)
    files = convert_checkpoint(tmp_path / "last.ckpt")
    assert [file.name for file in files] == ["last.state_dict.safetensors", "last.tavq.safetensors", "last.json"]

    again = build("vq")
    loader = torch.utils.data.DataLoader([{"image": IMAGES, "text": texts()}] * 2, batch_size=None)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, default_root_dir=tmp_path, max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(again, loader, ckpt_path=tmp_path / "last.ckpt")  # resumes at the end: no further batch
    assert all(torch.equal(value, again.align.state_dict()[name]) for name, value in trained.items())
    tavq.detach(again)


@pytest.mark.filterwarnings("ignore")
def test_the_mixin_trains_taming_without_an_attachment(tmp_path):
    model = build("vq", added=False)
    fit(model, tmp_path, 1, enable_checkpointing=False)
    assert model.global_step == 1 and model.align is None
