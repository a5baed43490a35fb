"""taming's VQModel and GumbelVQ trained under Lightning 2 (seen: pytorch-lightning 2.6.6, rom1504 0.0.6).

Quirks: both models take `optimizer_idx`, which Lightning 2 refuses. Under manual optimisation Lightning counts one step
per optimizer, so the discriminator would start after half of `disc_start`. `validation_step` logs "val/rec_loss" twice,
and GumbelVQ's passes an argument that `forward` does not take.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Lightning2:
    """Mixin, `class Mine(Lightning2, VQModel)`: manual optimisation, taming's losses, and steps counted as taming does.

    Set `align` in `configure_optimizers` to what `tavq.attach` returned; `align(batch[text_key])` is then added to the
    generator's loss. It is not a submodule, so `state_dict()` stays taming's own; in Lightning's checkpoints its state
    is `checkpoint["tavq"]`.
    """

    automatic_optimization = False
    align: Any = None
    text_key = "text"
    _restored: dict[str, Tensor] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; `align` does not become a submodule."""
        if name != "align":
            return super().__setattr__(name, value)
        object.__setattr__(self, name, value)
        if value is not None and self._restored is not None:
            value.load_state_dict(self._restored)
            object.__setattr__(self, "_restored", None)

    @property
    def global_step(self) -> int:
        """Batches seen; Lightning counts the generator's and the discriminator's steps separately."""
        return super().global_step // 2

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """The generator's pass and the discriminator's, each with its own optimizer."""
        for index, optimizer in enumerate(self.optimizers()):
            self.toggle_optimizer(optimizer)
            loss = super().training_step(batch, batch_idx, index)
            if index == 0 and self.align is not None:
                loss = loss + self.align(batch[self.text_key])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Both losses on a held-out batch, each quantity logged once."""
        images = self.get_input(batch, self.image_key)
        reconstruction, quantizer_loss = self(images)
        for index in range(2):
            total, parts = self.loss(
                quantizer_loss, images, reconstruction, index, self.global_step,
                last_layer=self.get_last_layer(), split="val",
            )  # fmt: skip
            name = ("val/aeloss", "val/discloss")[index]
            self.log_dict({name: total.detach(), **parts}, on_step=False, on_epoch=True, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the plug-in's state in the checkpoint, as `tavq`."""
        super().on_save_checkpoint(checkpoint)
        if self.align is not None:
            checkpoint["tavq"] = self.align.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hold the plug-in's state until `align` is set, as Lightning loads before it configures the optimizers."""
        super().on_load_checkpoint(checkpoint)
        object.__setattr__(self, "_restored", checkpoint.get("tavq"))
