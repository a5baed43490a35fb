"""Observe by autograd where a host's quantized vectors send their gradient, and compare it with what is assumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.hosts.call_sites import holding_module
from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.hosts.trial_run import HostError, HostReading, read_host
from tavq_plugin.types import GradTo


class GradientPaths(NamedTuple):
    """What the gradient of the quantizer's vectors reaches."""

    latent: bool  # the quantizer's input
    table: bool | None  # the parameters of the codebook; None if no gradient can reach them at all
    encoder: bool  # whether the quantizer's input carries gradient
    not_upstream: tuple[str, ...]  # taps on which the quantizer's input does not depend
    reading: HostReading  # of the run that was observed

    @property
    def training(self) -> bool:
        """Whether the host was in training mode; some quantizers are straight-through only there."""
        return self.reading.training


def observe_gradient(adapter: Adapter, images: Tensor, *, taps: Sequence[str]) -> GradientPaths | None:
    """Run the host with gradient, in training mode if that works, else in eval mode; None if neither works.

    `taps` are those that must be upstream of the quantizer. In a run of several processes training mode is left out, as
    a host may then wait for the others.
    """
    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
    for training in (True, False) if alone else (False,):
        adapter.model.train(training)
        try:
            with torch.enable_grad():
                reading = read_host(adapter, images.detach().clone().requires_grad_().clone())
                return _paths_of(adapter, reading, taps)
        except (HostError, ValueError):  # the eval run was read before: what fails here is training mode
            continue
        except RuntimeError as error:  # of autograd; a call of the tokenizer refuses such a host, with the mend
            if "use_reentrant" not in str(error):
                raise
            return None
        finally:
            adapter.model.eval()
    return None


def read_in_training(adapter: Adapter, images: Tensor) -> HostReading:
    """The reading of a host in training mode; it is in eval mode afterwards.

    Raises HostError for the host's own error; ValueError if a tap or the quantizer did not run, or ran several times.
    """
    adapter.model.train()
    try:
        return read_host(adapter, images)
    finally:
        adapter.model.eval()


def _paths_of(adapter: Adapter, reading: HostReading, taps: Sequence[str]) -> GradientPaths:
    z_in, vectors = reading.z_in, reading.final.vectors
    if not isinstance(z_in, Tensor) or not z_in.requires_grad:
        return GradientPaths(latent=False, table=None, encoder=False, not_upstream=(), reading=reading)
    parameters = _table_parameters(adapter, reading.table)
    gradients: Sequence[Tensor | None] = [None] * (1 + len(parameters))
    if vectors.requires_grad:
        gradients = torch.autograd.grad(
            (vectors * _weights(vectors)).sum(), [z_in, *parameters], allow_unused=True, retain_graph=True
        )
    reached = [gradient is not None and bool(gradient.ne(0).any()) for gradient in gradients]
    outputs = {path: reading.seen[path].output for path in taps}
    maps = {path: output for path, output in outputs.items() if isinstance(output, Tensor) and output.requires_grad}
    to_taps: Sequence[Tensor | None] = ()
    if maps:
        to_taps = torch.autograd.grad((z_in * _weights(z_in)).sum(), list(maps.values()), allow_unused=True)
    not_upstream = tuple(path for path, gradient in zip(maps, to_taps, strict=True) if gradient is None)
    return GradientPaths(reached[0], any(reached[1:]) if parameters else None, True, not_upstream, reading)


def _weights(like: Tensor) -> Tensor:
    """Fixed random weights, so that no gradient vanishes by symmetry."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1)).to(like)


def _table_parameters(adapter: Adapter, table: Tensor | None) -> list[Tensor]:
    """The parameters from which the codebook is computed: the quantizer's, if any of them, else the host's."""
    if table is None or not table.requires_grad:
        return []
    for module in (holding_module(adapter.model, adapter.quantizer), adapter.model):
        parameters: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        if parameters:
            found = torch.autograd.grad(table, parameters, torch.ones_like(table), allow_unused=True, retain_graph=True)
            reached = [p for p, gradient in zip(parameters, found, strict=True) if gradient is not None]
            if reached:
                return reached
    return []


def verify_gradient(adapter: Adapter, paths: GradientPaths | None, asked: GradTo | None, grad_to: GradTo) -> None:
    """Raise ValueError if the gradient cannot go where the alignment needs it; note what a user's quantizer does.

    Args:
        adapter: The host's. Where the user's `parse` reads the quantizer, its `custom_straight_through` is set.
        paths: What was observed; None leaves what is assumed as it is.
        asked: The user's grad_to=.
        grad_to: Where the gradient will go.
    """
    if paths is None:
        return
    if paths.not_upstream:
        raise ValueError(
            f"the quantizer's input does not depend on {', '.join(map(repr, paths.not_upstream))}: name two modules of "
            "the encoder in taps=, fine to coarse"
        )
    if not paths.encoder:
        if asked in ("encoder", "both"):
            raise ValueError(
                f'grad_to="{asked}" is impossible: the quantizer\'s input carries no gradient (a frozen, detached or '
                'no_grad encoder). Run the encoder with gradient, or give grad_to="codebook"'
            )
        return
    by_itself = bool(paths.table)
    if isinstance(adapter, HostAdapter) and adapter.reads_by_parse:
        if paths.table is not None:
            adapter.custom_straight_through = not (by_itself and paths.latent)
    elif paths.table is not None and by_itself == adapter.straight_through:
        raise ValueError(
            f"the quantizer's vectors {'send' if by_itself else 'send no'} gradient to the codebook by themselves, and "
            f"its adapter says the opposite (straight_through={adapter.straight_through}): correct the adapter, or "
            "pass parse= for this quantizer, with which it is observed"
        )
    if grad_to == "encoder" and not paths.latent and (paths.training or paths.table):
        raise ValueError(
            'grad_to="encoder" is impossible: the quantizer passes no gradient from its output to its input (it is not '
            "straight-through), so nothing would reach the encoder. Let parse= return "
            'vectors=z + (vectors - z).detach(), z being its input, or give grad_to="codebook" or "both" if the '
            "codebook takes gradient"
        )
