"""`attach` and `detach`: add the alignment loss to training code that must not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tavq_plugin.distributed import require_synchronized, unwrap
from tavq_plugin.hosts.hooks import Recorder, install_hooks, require_gradient
from tavq_plugin.hosts.summary import Summary, logger, summarize
from tavq_plugin.hosts.tokenizer import Tokenizer, codes_from, tapped_paths, wrap
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.moved import renamed_arguments
from tavq_plugin.side_effects import isolated_random_state
from tavq_plugin.types import Codes, TextBatch


class Attachment(nn.Module):
    """Hooks on a host that other code runs, and the weighted loss of its latest forward pass; texts -> scalar.

    Its state dict holds the plug-in's own parameters and nothing of the host. `codes` holds the levels of the latest
    call, `last` its diagnostics. `weight` may be changed between steps; at 0 nothing is recorded or computed.
    `print(align)` shows one line about what was added, `align.summary()` a table.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        alignment: TextAlignment,
        *,
        weight: float,
        codebook_loss_weight: float,
    ) -> None:
        super().__init__()
        self.hierarchy, self.alignment = tokenizer.hierarchy, alignment
        self.adapter, self.sizes = tokenizer.adapter, tokenizer.sizes  # not the tokenizer, which holds the host
        self.recorder = Recorder(tapped_paths(self.adapter))
        self.weight, self.codebook_loss_weight = weight, codebook_loss_weight
        self.codes: Codes | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._handles = install_hooks(self.adapter.model, self.recorder)

    @property
    def last(self) -> Mapping[str, Tensor]:
        """Diagnostics of the latest call, one value per level, each computed when it is read."""
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
        """weight · alignment + codebook_loss_weight · (added levels' loss), of the host's latest forward pass.

        Each forward pass is used once. Raises RuntimeError if there was none since the last call, or if it ran
        without gradient.
        """
        require_synchronized(self, "align")
        if self.weight == 0:
            return torch.zeros((), device=next(self.parameters()).device)
        seen = self.recorder.take()
        require_gradient(seen)
        self.codes = codes_from(self.adapter, self.hierarchy, seen)
        if not self.codes.final.latent.requires_grad:
            raise RuntimeError(
                "the captured latent carries no gradient: the encoder is frozen or uses reentrant checkpointing; "
                "unfreeze it, or call torch.utils.checkpoint with use_reentrant=False"
            )
        return self.weight * self.alignment(self.codes, texts) + self.codebook_loss_weight * self.codes.loss

    def release(self) -> None:
        """Undo everything on the host and in the optimizer; `tavq.detach` calls it."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.recorder.live = False
        self.recorder.seen = {}
        if self._optimizer is not None:
            own = {id(p) for p in self.parameters()}
            groups = self._optimizer.param_groups
            groups[:] = [group for group in groups if not any(id(p) in own for p in group["params"])]
            for parameter in self.parameters():
                self._optimizer.state.pop(parameter, None)
            self._optimizer = None

    def summary(self) -> str:
        """A table of the levels, the heads, the codebook, the gradient and the parameters added."""
        return self._summary().table()

    def __str__(self) -> str:
        return str(self._summary())

    def _summary(self) -> Summary:
        found = summarize(self.adapter, self.hierarchy, self.sizes)
        texts = self.alignment.levels
        widths = [m.in_features for m in self.alignment.project[0].modules() if isinstance(m, nn.Linear)]
        return replace(
            found,
            levels=tuple(level._replace(text=text) for level, text in zip(found.levels, texts, strict=False)),
            heads=f"{len(texts)} × ({' → '.join(map(str, [*widths, self.alignment.text_dim]))})",
            parameters=sum(parameter.numel() for parameter in self.parameters()),
        )


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
    log_summary: bool = True,
    **wrapping: Any,
) -> Attachment:
    """Add the alignment loss to training code that must not change: hooks on the host, parameters in the optimizer.

    Call it after building the optimizer, but before loading the optimizer's state or building a learning-rate schedule.
    After each forward pass of the host, add `align(texts)` to the generator's loss. `tavq.detach(host)` undoes it.

    Args:
        host: The model in training; it may be inside DistributedDataParallel or torch.compile.
        optimizer: The generator's. It receives the new parameters as a group with the first group's learning rate.
        weight: λ, the weight of the alignment; 0 returns an exact 0 and computes nothing.
        codebook_loss_weight: Weight of the added levels' codebook and commitment loss.
        text_dim: Width of the text embeddings. Default: that of `store` or `encoder`.
        encoder: Embeds strings. Default: the offline MiniLM, unless `text_dim` or `store` is given.
        store: Holds the text units of ids.
        alignment: Further settings of `TextAlignment`.
        log_summary: If true, log one line about what was added (logger "tavq_plugin", level INFO).
        **wrapping: Settings of `wrap`.

    Raises:
        ValueError: A weight is negative, the host has an attachment already, or `wrap` or `TextAlignment` raises it.
    """
    host = unwrap(host)
    if host in _attached:
        raise ValueError("this host has an attachment already: call tavq.detach(host) first")
    if text_dim is None and encoder is None and store is None:
        from tavq_plugin.text.encoder import offline_encoder

        encoder = offline_encoder()
    tokenizer = wrap(host, log_summary=False, **wrapping)
    device = next(host.parameters()).device
    with isolated_random_state(device):
        heads = TextAlignment(tokenizer, text_dim, encoder=encoder, store=store, **(alignment or {})).to(device)
    align = Attachment(tokenizer, heads, weight=weight, codebook_loss_weight=codebook_loss_weight)
    optimizer.add_param_group({"params": list(align.parameters()), "lr": optimizer.param_groups[0]["lr"]})
    align._optimizer = optimizer
    _attached[host] = align
    if log_summary:
        logger.info("attached: %s", align)
    return align


def detach(host: nn.Module) -> None:
    """Restore the host, and the optimizer given to `attach`, as they were; does nothing without an attachment."""
    align = _attached.pop(unwrap(host), None)
    if align is not None:
        align.release()


def attachment_of(host: nn.Module) -> Attachment | None:
    """The attachment that `attach` put on a host; None if there is none."""
    return _attached.get(unwrap(host))
