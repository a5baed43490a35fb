"""A plain training loop around a wrapped host: what the demo runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.align.loss import TextAlignment
from tavq_plugin.align.softened import half_cosine, softened
from tavq_plugin.attach import Tokenizer
from tavq_plugin.clock import Clock
from tavq_plugin.contract import TextBatch
from tavq_plugin.data.images import to_float
from tavq_plugin.revival import Revival, latents_of
from tavq_plugin.settings import Training


class Trained(NamedTuple):
    """What a finished loop reports."""

    history: list[dict[str, float]]  # one row a step
    seconds_per_step: float  # median
    plugin_share: float  # 0..1


def train(
    tokenizer: Tokenizer,
    align: TextAlignment | None,
    images: Tensor,
    texts: Callable[[Sequence[int]], TextBatch] | None,
    settings: Training,
    *,
    each: Callable[[int], None] = lambda step: None,
) -> Trained:
    """Train the tokenizer, in place, on images (n 3 r r uint8) and the texts of the same rows.

    For the first `settled` steps the host learns as an autoencoder, by L1 alone, its latents unquantized; then its
    codebook starts on latents of the training images, and the loss is L1 + the host's quantizer loss +
    level_weight · (added levels' loss) + alignment. The alignment's gradient reaches the tokenizer times λ, falling
    from `weight` to `weight_end`, and the alignment's own heads in full: they learn to read the codes as they are, to
    the end. `align=None` is λ = 0. Batches come from `settings.seed` alone, so runs that differ in `align` see the
    same images in the same order. `each(step)` is called after every step. Raises FloatingPointError where the loss
    is not finite.
    """
    heads = list(align.parameters()) if align else []
    plugin = [*tokenizer.hierarchy.parameters(), *heads]
    host = list(tokenizer.host.parameters())
    optimizer = torch.optim.Adam([*host, *tokenizer.hierarchy.parameters()], lr=settings.learning_rate, fused=True)
    if heads:
        optimizer.add_param_group({"params": heads, "lr": settings.learning_rate * settings.head_rate})
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    share = sum(p.numel() for p in plugin) / sum(p.numel() for p in [*host, *plugin])
    batches = _batches(len(images), settings)
    history: list[dict[str, float]] = []
    tokenizer.train()
    for step in range(settings.settled):
        batch = to_float(images[next(batches)])
        pixel = F.l1_loss(tokenizer.adapter.decode(latents_of(tokenizer.adapter, batch)), batch)
        _refuse_if_broken(step, loss=pixel)
        optimizer.zero_grad()
        pixel.backward()
        optimizer.step()
        schedule.step()
        history.append({"step": step, "pixel": pixel.item(), "level": 0.0, "alignment": 0.0})
        each(step)

    codebook = tokenizer.adapter.codebook()
    revival = Revival(len(codebook), settings.seed, below=settings.revive_below)
    revival.start(codebook, tokenizer.adapter, images)
    clock = Clock(tokenizer.hierarchy)
    try:
        for step in range(settings.settled, settings.steps):
            rows = next(batches)
            batch = to_float(images[rows])
            with clock.step():
                (reconstruction, quantizer_loss), codes = tokenizer(batch)
                pixel = F.l1_loss(reconstruction, batch)
                loss = pixel + quantizer_loss + settings.level_weight * codes.loss
                with clock.in_plugin():
                    reached = softened(codes, _weight(step, settings))
                    aligned = align(reached, texts(rows.tolist())) if align else torch.zeros(())
                    loss = loss + aligned
                _refuse_if_broken(step, loss=loss, pixel=pixel, quantizer=quantizer_loss, alignment=aligned)
                optimizer.zero_grad()
                clock.backward(loss)
                with clock.update(share):
                    optimizer.step()
                revival.see(codes.final)
                if _revives(step, settings):
                    revival.move(codebook, codes.final)
            schedule.step()
            row = {"step": step, "pixel": pixel.item(), "level": codes.loss.item(), "alignment": aligned.item()}
            history.append(row)
            each(step)
    finally:
        clock.close()
    return Trained(history, clock.seconds_per_step, clock.share)


def _batches(n: int, settings: Training) -> Iterator[Tensor]:
    """Rows of each step's images, epoch after epoch, by the seed alone."""
    draw, order = torch.Generator().manual_seed(settings.seed), torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < settings.batch_size:
            order = torch.cat([order, torch.randperm(n, generator=draw)])
        yield order[: settings.batch_size]
        order = order[settings.batch_size :]


def _refuse_if_broken(step: int, *, loss: Tensor, **parts: Tensor) -> None:
    if not loss.isfinite():
        named = ", ".join(f"{name} {part.item():.3g}" for name, part in parts.items())
        raise FloatingPointError(f"the loss is {loss.item()} at step {step} ({named}): lower the learning rate")


def _revives(step: int, settings: Training) -> bool:
    """Whether hardly used codes move after this step."""
    early = step < settings.revive_share * settings.steps
    return early and settings.revive_every > 0 and step % settings.revive_every == settings.revive_every - 1


def _rate(step: int, settings: Training) -> float:
    """Share of the peak learning rate: linear rise, then half a cosine to 0."""
    rise = min(1.0, (step + 1) / max(1, settings.warmup))
    return rise * half_cosine(step / settings.steps)


def _weight(step: int, settings: Training) -> float:
    """λ: half a cosine from `weight` to `weight_end` over the steps with codes; 0 throughout where `weight` is 0."""
    end = min(settings.weight, settings.weight_end)
    done = (step - settings.settled) / (settings.steps - settings.settled)
    return end + (settings.weight - end) * half_cosine(done)
