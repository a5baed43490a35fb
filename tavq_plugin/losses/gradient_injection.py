"""Compute a loss on detached copies of a host's tensors, and hand its gradient to the tensors in the outer backward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle

from tavq_plugin.distributed import is_sharded_tensor
from tavq_plugin.losses.gradient_balance import Balanced
from tavq_plugin.types import Codes, DetachedCopy

# the alignment's gradient, the host's, the axis of the images, the level
Rule = Callable[[Tensor, Tensor, int | None, int], Balanced]


class GradientFigures:
    """What the latest backward found at each tensor that received a gradient, and how often one received none.

    Every figure stays on the device until it is read. `warn_of_skipped` reads one, and makes the device wait.
    """

    def __init__(self) -> None:
        self.cosine: dict[str, Tensor] = {}
        self.ratio: dict[str, Tensor] = {}
        self.skipped: dict[str, Tensor] = {}  # backward passes in which the host's gradient was 0 or not finite
        self.warned = False

    def expect(self, name: str, like: Tensor) -> None:
        """Mark a tensor's figures as not known yet, NaN."""
        self.cosine[name] = self.ratio[name] = torch.full((), torch.nan, device=like.device)
        if name not in self.skipped:
            self.skipped[name] = torch.zeros((), dtype=torch.int64, device=like.device)

    def add(self, name: str, found: Balanced) -> None:
        """Add what was found at a tensor."""
        self.cosine[name], self.ratio[name] = found.cosine.float(), found.ratio.float()
        self.skipped[name] = self.skipped[name] + ~found.usable

    def values(self, figure: str) -> Tensor:
        """One figure ("cosine", "ratio" or "skipped") at every tensor, in the order of `names`."""
        return torch.stack(list(getattr(self, figure).values()))

    def warn_of_skipped(self) -> Tensor:
        """The figure "skipped"; warns, once for this object, if the alignment did not reach some tensor."""
        counts = self.values("skipped")
        found = {name: count for name, count in zip(self.skipped, counts.tolist(), strict=True) if count}
        if found and not self.warned:
            self.warned = True
            where = ", ".join(f"{name} ({count})" for name, count in found.items())
            warnings.warn(
                f"the host's own gradient was 0, absent or not finite at {where}; in so many backward passes the "
                "alignment added nothing there. A few at the start are normal with a GradScaler. Else, let the host's "
                'loss depend on them, name other modules in taps=, give grad_to="encoder" if the codebook is named, or '
                "give balance=None for a weighted sum",
                stacklevel=2,
            )
        return counts

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that received a gradient: taps, latent and codebook."""
        return tuple(self.cosine)

    def add_absent(self, name: str) -> None:
        """Count a tensor to which the host sent no gradient."""
        self.skipped[name] = self.skipped[name] + 1


class GradientInjection:
    """Hooks on tensors of the host that pass on the host's gradient and the alignment's; they act in one backward.

    That backward is the one which `release`'s scalar takes part in. The hooks go at its end, or with the scalar.

    Args:
        reached: The tensors, and the alignment's gradient at each.
        rule: What is passed on; None only without tensors.
        figures: Takes what is found.
    """

    def __init__(
        self, reached: Sequence[tuple[DetachedCopy, Tensor]], rule: Rule | None, figures: GradientFigures
    ) -> None:
        self.handles: list[RemovableHandle] = []
        self.names = [copy.name for copy, _ in reached]
        self.places = [(copy.images, copy.level) for copy, _ in reached]
        self.is_parameter = [copy.original is copy.copy for copy, _ in reached]
        self.gradients: list[Tensor | None] = [gradient for _, gradient in reached]
        self.rule, self.figures = rule, figures
        self.backward: int | None = None  # the engine's number of the backward in which the hooks act
        for copy, _ in reached:
            figures.expect(copy.name, copy.copy)
        # The graph owns the hooks: they must not own the graph, so they know this object by a weak reference only.
        self.handles = [copy.original.register_hook(_Hook(ref(self), index)) for index, (copy, _) in enumerate(reached)]

    def start(self) -> None:
        """Let the hooks act in the backward that runs now, and go at its end; nothing if they are gone."""
        number = torch._C._current_graph_task_id()
        if self.handles and self.backward != number:
            self.backward = number
            Variable._execution_engine.queue_callback(self.end)  # holds this object until then

    def passed_on(self, index: int, host: Tensor) -> Tensor | None:
        """The gradient to pass on at one tensor; None leaves the host's as it is."""
        alignment = self.gradients[index]
        if alignment is None or self.rule is None or self.backward != torch._C._current_graph_task_id():
            return None
        self.gradients[index] = None
        found = self.rule(alignment, host, *self.places[index])
        self.figures.add(self.names[index], found)
        return found.gradient

    def end(self) -> None:
        """Remove the hooks. Raises RuntimeError if the host's gradient did not come by at a tap."""
        self.remove()
        absent = [index for index, gradient in enumerate(self.gradients) if gradient is not None]
        self.gradients = [None] * len(self.gradients)
        for index in absent:
            self.figures.add_absent(self.names[index])
        if taps := [self.names[index] for index in absent if not self.is_parameter[index]]:
            raise RuntimeError(
                f"the host's gradient never came by at {', '.join(taps)}: the alignment's cannot be balanced against "
                "it. Add align(texts) to a loss that depends on the host's whole forward, and call backward once, on "
                "the sum. torch.compile hides this gradient if it compiles the host as a whole: compile the tapped "
                "modules one by one instead, or give balance=None"
            )

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def __del__(self) -> None:
        self.remove()


class _Hook:
    """A tensor hook of an injection; it does nothing once the injection is gone."""

    def __init__(self, injection: ref[GradientInjection], index: int) -> None:
        self.injection, self.index = injection, index

    def __call__(self, grad: Tensor | None) -> Tensor | None:
        injection = self.injection()
        if injection is None or grad is None:
            return None
        return injection.passed_on(self.index, grad)


class _Release(torch.autograd.Function):
    """A value, whose backward gives parameters their gradients, which are known, and starts an injection.

    The host's tensors are inputs too, though they get nothing here: so their hooks run after this backward, whatever
    the user computed first, and a backward that asks for gradients of the host alone comes by here.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, injection: GradientInjection, gradients: Sequence[Tensor], *inputs: Tensor
    ) -> Tensor:
        ctx.injection, ctx.gradients, ctx.others = injection, gradients, len(inputs) - len(gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ctx.injection.start()
        own = (grad.to(own.dtype) * own for own in ctx.gradients)
        return None, None, None, *own, *[None] * ctx.others


def align_on_copies(
    loss: Callable[[Codes], Tensor],
    codes: Codes,
    parameters: Sequence[nn.Parameter],
    *,
    rule: Rule | None,
    figures: GradientFigures,
) -> Tensor:
    """The loss of codes that were computed on copies, a scalar; one backward through it runs here.

    The scalar's own backward multiplies the gradients of the parameters by what it receives, as any loss does. The
    host's tensors get what the rule makes of the gradient here and the host's, whatever the scalar is multiplied by.

    Args:
        loss: Computes the scalar from the codes.
        codes: With `copies`.
        parameters: The plug-in's own.
        rule: What is passed on at each of the host's tensors. None: the host gets nothing.
        figures: Takes what is found there.

    Raises:
        ValueError: The codes have no copies.
        RuntimeError: No gradient reaches any copy, or it reaches a parameter that is sharded.
    """
    if not codes.copies:
        raise ValueError(
            "these codes were not computed on copies: set tokenizer.on_copies = True, or give balance=None"
        )
    value = loss(codes)
    copies = () if rule is None else codes.copies
    leaves = [copy.copy for copy in copies]
    with torch.autocast(value.device.type, enabled=False):
        found = torch.autograd.grad(value, [*leaves, *parameters], allow_unused=True, retain_graph=True)
    at_copies, at_parameters = found[: len(leaves)], found[len(leaves) :]
    reached = [(copy, grad) for copy, grad in zip(copies, at_copies, strict=True) if grad is not None]
    if sharded := [copy.name for copy, _ in reached if is_sharded_tensor(copy.original)]:
        raise RuntimeError(
            f"FSDP2 shards {', '.join(sharded)}, so the host's gradient there is not known before it is averaged: give "
            'grad_to="encoder", or balance=None (options.balance=null in a recipe)'
        )
    if copies and not reached:
        raise RuntimeError(
            "the alignment's gradient reaches no tap, latent or codebook: the quantizer's output is of a type whose "
            "tensors cannot be copied; return a tuple or a dict from it, or give balance=None"
        )
    own = [(p, grad) for p, grad in zip(parameters, at_parameters, strict=True) if grad is not None]
    injection = GradientInjection(reached, rule, figures)
    originals = [copy.original for copy, _ in reached]
    return _Release.apply(value.detach(), injection, [grad for _, grad in own], *(p for p, _ in own), *originals)
