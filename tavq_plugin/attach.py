"""`attach` and `detach`: add the alignment loss to training code that must not change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tavq_plugin.distributed import is_sharded, require_synchronized, unwrap
from tavq_plugin.hosts.codebook_drift import CodebookDrift
from tavq_plugin.hosts.hooks import Recorder, install_hooks, require_gradient
from tavq_plugin.hosts.optimizer_groups import LoadedGroups, refuse_scheduled
from tavq_plugin.hosts.summary import Summary, logger, summarize
from tavq_plugin.hosts.tokenizer import Tokenizer, codes_from, tapped_paths, wrap
from tavq_plugin.losses.alignment_settings import AlignmentSettings, Balance
from tavq_plugin.losses.alignment_term import alignment_term
from tavq_plugin.losses.diagnostics import Diagnostics
from tavq_plugin.losses.gradient_injection import GradientFigures
from tavq_plugin.losses.run_progress import RunProgress
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.moved import renamed_arguments
from tavq_plugin.side_effects import isolated_random_state
from tavq_plugin.types import Codes, TextBatch

CHECKED_EVERY = 100  # calls; often enough to be told early, and seldom enough not to hold up a GPU


class Attachment(nn.Module):
    """Hooks on a host that other code runs, and the loss of its latest forward pass; texts -> scalar.

    Its state dict holds the plug-in's own parameters, the count of steps if the run's length is known, and nothing of
    the host. `codes` holds the levels of the latest call, `last` its diagnostics. `weight` may be changed between
    steps; at 0 nothing is recorded or computed.
    `print(align)` shows one line about what was added, `align.summary()` a table.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        alignment: TextAlignment,
        *,
        settings: AlignmentSettings,
        codebook_loss_weight: float,
        total_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.hierarchy, self.alignment = tokenizer.hierarchy, alignment
        self.adapter, self.sizes = tokenizer.adapter, tokenizer.sizes  # not the tokenizer, which holds the host
        self.recorder = Recorder(tapped_paths(self.adapter))
        self.settings, self.codebook_loss_weight = settings, codebook_loss_weight
        self.recorder.live = settings.is_balanced or bool(settings.weight)
        self.progress = None if total_steps is None else RunProgress(total_steps)
        self.figures, self.calls, self.drift = GradientFigures(), 0, CodebookDrift()
        self.codes: Codes | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._added: tuple[nn.Parameter, ...] = ()  # to the optimizer
        self._handles = install_hooks(self.adapter.model, self.recorder)

    @property
    def last(self) -> Diagnostics:
        """Diagnostics of the latest call, each computed when it is read; see `Diagnostics` for their names.

        "alignment" and "codebook_loss" are the two parts of the returned scalar.
        """
        return self.alignment.last

    @property
    def weight(self) -> float:
        """λ at the start: what multiplies the alignment's gradient that reaches the host; 0 with a balance."""
        return self.settings.weight or 0.0

    @weight.setter
    def weight(self, value: float) -> None:
        if self.settings.is_balanced:
            raise ValueError(f"weight has no effect with {self.settings.reach()}: attach with balance=None")
        self.settings = replace(self.settings, weight=value)
        self.recorder.live = value > 0

    def forward(self, texts: TextBatch | Sequence[str] | Sequence[int]) -> Tensor:
        """alignment + codebook_loss_weight · (added levels' loss), of the host's latest forward pass.

        The heads learn from it in full; the host as `weight` or `balance` says. With a balance, call backward once, on
        the sum of this and the host's own loss; a factor on this scalar then reaches the plug-in's parameters alone.
        Where the host's gradient is 0, absent or not finite, nothing is added. `last["gradient_skipped"]` counts it,
        and one warning says so: when this is read, or else within `CHECKED_EVERY` calls, or by `tavq.detach`. Every
        thousandth call compares the host's vectors with its codebook; if they drifted apart, a warning says so when
        `last` is read, or by `tavq.detach`.
        Each forward pass is used once. Raises RuntimeError if there was none since the last call, or if it ran
        without gradient.
        """
        require_synchronized(self, "align")
        if self.settings.balance is None and self.settings.weight == 0:
            return torch.zeros((), device=next(self.parameters()).device)
        self.calls += 1
        if self.calls % CHECKED_EVERY == 0 and self.figures.names:
            self.figures.warn_of_skipped()
        seen = self.recorder.take()
        require_gradient(seen)
        codes = codes_from(self.adapter, self.hierarchy, seen, on_copies=self.settings.is_balanced)
        if not codes.final.latent.requires_grad:
            raise RuntimeError(
                "the captured latent carries no gradient: the encoder is frozen or uses reentrant checkpointing; "
                "unfreeze it, or call torch.utils.checkpoint with use_reentrant=False"
            )
        value = alignment_term(
            self.alignment,
            codes,
            texts,
            settings=self.settings,
            progress=0.0 if self.progress is None else self.progress.share,
            parameters=[p for p in self.parameters() if p.requires_grad],
            figures=self.figures,
        )
        self.alignment.last.add("codebook_loss", codes.loss)
        if self.drift.is_due(self.calls):
            self.drift.check_call(self.adapter, self.hierarchy, seen[self.adapter.quantizer], self.calls)
        if self.drift.found is not None:
            self.alignment.last.before_reading(self.drift.warn)
        self.codes = replace(codes, copies=())  # they hold the host's tensors
        return value + self.codebook_loss_weight * codes.loss

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: everything but the latest codes, which are part of a graph."""
        return {**super().__getstate__(), "codes": None}

    def release(self) -> None:
        """Undo everything on the host and in the optimizer; `tavq.detach` calls it."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.recorder.live = False
        self.recorder.seen = {}
        if self._optimizer is not None:
            added = {id(p) for p in self._added}
            groups = self._optimizer.param_groups
            groups[:] = [group for group in groups if not any(id(p) in added for p in group["params"])]
            for parameter in self._added:
                self._optimizer.state.pop(parameter, None)
            self._optimizer, self._added = None, ()
        if self.figures.names:
            self.figures.warn_of_skipped()
        self.drift.warn()

    def summary(self) -> str:
        """A table of the levels, heads, settings, learning rates, schedule, codebook, gradient and parameters added."""
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
            reach=self.settings.reach(),
            alignment=f"{self.settings}; codebook loss {self.codebook_loss_weight:g}",
            rates=f"heads {self.settings.heads_rate:g} × that of the optimizer's first group, added levels 1 ×",
            schedule=self._schedule(),
            parameters=sum(parameter.numel() for parameter in self.parameters()),
        )

    def _schedule(self) -> str:
        name = "balance" if self.settings.is_balanced else "weight"
        if self.progress is None:
            return f"{name} constant, as total_steps was not given"
        end = 0.0 if self.settings.is_balanced else self.settings.weight_at(1.0)
        first = f"rises from 0 over the first {self.settings.rise:.0%} of the run and " if self.settings.rise else ""
        return f"{name} {first}falls to {end:g} over {self.progress.total_steps:,} steps, along half a cosine"


_attached: WeakKeyDictionary[nn.Module, Attachment] = WeakKeyDictionary()


@renamed_arguments(level_weight="codebook_loss_weight")
def attach(
    host: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    weight: float | None = None,
    balance: Balance = "auto",
    total_steps: int | None = None,
    codebook_loss_weight: float = 1.0,
    text_dim: int | None = None,
    encoder: Any = None,
    store: Any = None,
    alignment: dict[str, Any] | None = None,
    log_summary: bool = True,
    **wrapping: Any,
) -> Attachment:
    """Add the alignment loss to training code that must not change: hooks on the host, parameters in the optimizer.

    Call it after building the optimizer, and before building a learning-rate schedule. An optimizer state that was
    saved without the plug-in may be loaded before or after it, one that was saved with it only after it.
    After each forward pass of the host, add `align(texts)` to the generator's loss. `tavq.detach(host)` undoes it.

    Args:
        host: The model in training, or the tokenizer that `wrap` made of it, whose added levels are then used; it may
            be inside DistributedDataParallel or torch.compile. A loop that calls a tokenizer adds `align(texts)` alone,
            which holds `codes.loss` already.
        optimizer: The generator's. It receives two groups of new parameters: the added levels', at the first group's
            learning rate, and the heads', at `heads_rate` (of `alignment`, 2 by default) times it. With heads_rate=1
            it receives one group, as before version 0.2. A loop that sets the rate of every group by itself also sets
            these two.
        weight: λ, what multiplies the alignment's gradient that reaches the host; the heads learn in full. It makes a
            weighted sum, without a balance. 0 returns an exact 0 and computes nothing. Default: none; .2 with
            balance=None.
        balance: ρ: the alignment's gradient at each tap, the latent and the codebook is ρ times as large as the host's
            own there, and the part that opposes it is removed. It does not depend on the scale of the host's loss. The
            added levels' own loss then trains their projections only. One value, or one per level, fine → coarse; the
            latent and the codebook have the last level's. None: a weighted sum by `weight`. Default: that of
            `AlignmentSettings`, unless a weight is given.
        total_steps: Optimizer steps of the run; λ or ρ falls to 0 over them along half a cosine. Default: constant.
            With alignment={"rise": 0.3}, for a trained host, it first rises from 0 over that share of them.
        codebook_loss_weight: Weight of the added levels' codebook and commitment loss.
        text_dim: Width of the text embeddings. Default: that of `store` or `encoder`.
        encoder: Embeds strings. Default: the offline MiniLM, unless `text_dim` or `store` is given.
        store: Holds the text units of ids.
        alignment: Further settings, the fields of `AlignmentSettings` by name.
        log_summary: If true, log one line about what was added (logger "tavq_plugin", level INFO).
        **wrapping: Settings of `wrap`.

    Raises:
        ValueError: The optimizer has a learning-rate schedule, a weight or the balance is out of its range, both are
            given, `rise` comes without total_steps, the host has an attachment already, its codebook is sharded and the
            balance must reach it, or `wrap` or `TextAlignment` raises it.
    """
    given, host = unwrap(host), _host_in(host)
    if host in _attached:
        raise ValueError("this host has an attachment already: call tavq.detach(host) first")
    refuse_scheduled(optimizer)
    if text_dim is None and encoder is None and store is None:
        from tavq_plugin.text.encoder import offline_encoder

        encoder = offline_encoder()
    settings = _settings(weight=weight, balance=balance, **(alignment or {}))
    if settings.rise and total_steps is None:
        raise ValueError(
            f"rise={settings.rise} is a share of the run: give total_steps=, the optimizer steps of the run"
        )
    if isinstance(given, Tokenizer) and wrapping:
        raise ValueError(f"attach got a tokenizer and {', '.join(wrapping)}=: give settings of wrap to wrap")
    tokenizer = given if isinstance(given, Tokenizer) else wrap(host, log_summary=False, **wrapping)
    if settings.is_balanced and is_sharded(host) and tokenizer.hierarchy.grad_to != "encoder":
        raise ValueError(
            "balance needs the host's own gradient at the codebook, which FSDP2 shards and averages first: give "
            'grad_to="encoder", or balance=None'
        )
    device = next(host.parameters()).device
    with isolated_random_state(device):
        heads = TextAlignment(tokenizer, text_dim, encoder=encoder, store=store, **settings.head_settings()).to(device)
    align = Attachment(
        tokenizer, heads, settings=settings, codebook_loss_weight=codebook_loss_weight, total_steps=total_steps
    )
    if align.progress is not None:
        align._handles.append(optimizer.register_step_post_hook(align.progress.count))
    for group in _parameter_groups(align, optimizer):
        optimizer.add_param_group(group)
        align._added += tuple(group["params"])
    align._optimizer = optimizer
    align._handles.append(optimizer.register_load_state_dict_pre_hook(LoadedGroups(align._added)))
    _attached[host] = align
    if log_summary:
        logger.info("attached: %s", align)
    return align


@renamed_arguments(level_weight="level_weights")
def _settings(**settings: Any) -> AlignmentSettings:
    return AlignmentSettings(**settings)


def _parameter_groups(align: Attachment, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Groups of the parameters that the optimizer does not hold: the added levels' and the heads', at their own rates.

    One group if both rates are equal.
    """
    rate, held = optimizer.param_groups[0]["lr"], {id(p) for group in optimizer.param_groups for p in group["params"]}
    parts = [(align.hierarchy, rate), (align.alignment, align.settings.heads_rate * rate)]
    if align.settings.heads_rate == 1:
        parts = [(align, rate)]
    groups = [{"params": [p for p in part.parameters() if id(p) not in held], "lr": lr} for part, lr in parts]
    return [group for group in groups if group["params"]]


def _host_in(module: nn.Module) -> nn.Module:
    """The host inside DistributedDataParallel, torch.compile and a tokenizer."""
    module = unwrap(module)
    return module.host if isinstance(module, Tokenizer) else module


def detach(host: nn.Module) -> None:
    """Restore the host, and the optimizer given to `attach`, as they were; does nothing without an attachment."""
    align = _attached.pop(_host_in(host), None)
    if align is not None:
        align.release()


def attachment_of(host: nn.Module) -> Attachment | None:
    """The attachment that `attach` put on a host; None if there is none."""
    return _attached.get(_host_in(host))
