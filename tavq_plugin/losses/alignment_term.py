"""The alignment as a term of a training loss, by weighted sum or by balanced gradients: one path for all callers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tavq_plugin.losses.alignment_settings import AlignmentSettings
from tavq_plugin.losses.gradient_balance import Balanced, balance_gradient
from tavq_plugin.losses.gradient_injection import GradientFigures, align_on_copies
from tavq_plugin.losses.gradient_scale import scale_gradient
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.types import Codes, TextBatch


def alignment_term(
    alignment: TextAlignment,
    codes: Codes,
    texts: TextBatch | Sequence[str] | Sequence[int],
    *,
    settings: AlignmentSettings,
    progress: float,
    parameters: Sequence[nn.Parameter],
    figures: GradientFigures,
    every: int = 1,
) -> Tensor:
    """The alignment's value, whose gradient reaches the heads in full and the host as the settings say; scalar.

    Args:
        alignment: Computes the value.
        codes: Of the batch; computed on copies if the settings have a balance.
        texts: What `alignment` takes.
        settings: Their λ or ρ holds for the host.
        progress: Share of the run that is done, 0 to 1.
        parameters: The plug-in's own: those of the heads and of the added levels.
        figures: Takes what is found where gradients are balanced.
        every: Steps from one alignment to the next; the host's gradient is multiplied by it.
    """
    if settings.balance is None or not torch.is_grad_enabled():
        value = alignment(scale_gradient(codes, every * settings.weight_at(progress)), texts)
        alignment.last.add_codes([level.quantized for level in codes.levels])  # so that no scaled copy is held
    else:
        ratio = every * settings.balance_at(progress)
        rule = partial(_balanced, ratio) if ratio else None
        value = align_on_copies(lambda codes: alignment(codes, texts), codes, parameters, rule=rule, figures=figures)
        alignment.last.add_gradients(figures)
    alignment.last.add("alignment", value)
    return value


def _balanced(ratio: float, alignment: Tensor, host: Tensor, images: int | None) -> Balanced:
    return balance_gradient(alignment, host, ratio, images=images)
