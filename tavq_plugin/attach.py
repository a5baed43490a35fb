"""`attach` and `detach`: the alignment loss for training code that must not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tavq_plugin.distributed import require_synchronized, unwrap
from tavq_plugin.hosts.hierarchy import Hierarchy
from tavq_plugin.hosts.hooks import Recorder, install_hooks, require_gradient
from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.hosts.tokenizer import codes_from, tapped_paths, wrap
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.moved import renamed_arguments
from tavq_plugin.side_effects import isolated_random_state
from tavq_plugin.types import Codes, TextBatch


class Attachment(nn.Module):
    """Taps on a host that others run, and the weighted loss of its latest forward; texts -> scalar.

    Its state dict holds the plug-in's own parameters and nothing of the host. `codes` keeps the latest levels,
    `last` the diagnostics. `weight` may be changed between steps; at 0 nothing is recorded or computed.
    """

    def __init__(
        self,
        adapter: Adapter,
        hierarchy: Hierarchy,
        alignment: TextAlignment,
        *,
        weight: float,
        codebook_loss_weight: float,
    ) -> None:
        super().__init__()
        self.hierarchy, self.alignment = hierarchy, alignment
        self.adapter = adapter
        self.recorder = Recorder(tapped_paths(adapter))
        self.weight, self.codebook_loss_weight = weight, codebook_loss_weight
        self.codes: Codes | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._handles = install_hooks(adapter.model, self.recorder)

    @property
    def last(self) -> Mapping[str, Tensor]:
        """Diagnostics of the latest call, each computed when it is read."""
        return self.alignment.last

    @property
    def weight(self) -> float:
        """λ: the weight of the alignment in the returned scalar."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        if not value >= 0:
            raise ValueError(f"weight must be 0 or more, got {value}")
        self._weight = value
        self.recorder.live = value > 0

    def forward(self, texts: TextBatch | Sequence[str] | Sequence[int]) -> Tensor:
        """weight · alignment + codebook_loss_weight · (added levels' loss), of the host's latest forward.

        Raises RuntimeError where there was no forward since the last call, or it ran without gradient.
        """
        require_synchronized(self, "align")
        if self.weight == 0:
            return torch.zeros((), device=next(self.parameters()).device)
        seen = self.recorder.take()
        require_gradient(seen)
        self.codes = codes_from(self.adapter, self.hierarchy, seen)
        if not self.codes.final.latent.requires_grad:
            raise RuntimeError(
                "the captured latent carries no gradient (a frozen encoder, or reentrant checkpointing): "
                "use torch.utils.checkpoint with use_reentrant=False, or unfreeze the encoder"
            )
        return self.weight * self.alignment(self.codes, texts) + self.codebook_loss_weight * self.codes.loss

    def release(self) -> None:
        """Undo everything on the host and in the optimizer; what `tavq.detach` calls."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.recorder.live = False
        self.recorder.seen = {}
        if self._optimizer is not None:
            mine = {id(p) for p in self.parameters()}
            groups = self._optimizer.param_groups
            groups[:] = [group for group in groups if not any(id(p) in mine for p in group["params"])]
            for parameter in self.parameters():
                self._optimizer.state.pop(parameter, None)
            self._optimizer = None


_attached: WeakKeyDictionary[nn.Module, Attachment] = WeakKeyDictionary()


@renamed_arguments(level_weight="codebook_loss_weight")
def attach(
    host: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    weight: float = 0.3,
    codebook_loss_weight: float = 1.0,
    text_dim: int | None = None,
    encoder: Any = None,
    store: Any = None,
    alignment: dict[str, Any] | None = None,
    **wrapping: Any,
) -> Attachment:
    """The loss for training code that must not change: hooks on the host, new parameters in the optimizer.

    Call it after the optimizer is built and before its state or a schedule is; then add `align(texts)` to the
    generator's loss, after the host's own forward. Strings need `encoder=` (default: the offline MiniLM), ids
    need `store=`. `alignment` are TextAlignment's further settings, `wrapping` those of `wrap`.

    Raises ValueError for a bad weight or where the host has an attachment already.
    """
    host = unwrap(host)
    if host in _attached:
        raise ValueError("this host has an attachment already: tavq.detach(host) first")
    if text_dim is None and encoder is None and store is None:
        from tavq_plugin.text.encoder import offline_encoder

        encoder = offline_encoder()
    tokenizer = wrap(host, **wrapping)
    device = next(host.parameters()).device
    with isolated_random_state(device):
        heads = TextAlignment(tokenizer, text_dim, encoder=encoder, store=store, **(alignment or {})).to(device)
    align = Attachment(
        tokenizer.adapter, tokenizer.hierarchy, heads, weight=weight, codebook_loss_weight=codebook_loss_weight
    )
    group = {"params": list(align.parameters()), "lr": optimizer.param_groups[0]["lr"]}
    optimizer.add_param_group(group)
    align._optimizer = optimizer
    _attached[host] = align
    return align


def detach(host: nn.Module) -> None:
    """Leave the host, and the optimizer given to `attach`, as they were found; nothing to do for a wrapped host."""
    align = _attached.pop(unwrap(host), None)
    if align is not None:
        align.release()
