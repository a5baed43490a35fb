"""One generator pass as one module's forward, so that DDP and FSDP see every parameter where they expect it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.hosts.hooks import find_module
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.methods.base import Method, Step, texts_of
from tavq_plugin.training.build_host import picture
from tavq_plugin.training.codebook_restarts import latents_of
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.timer import StepTimer
from tavq_plugin.types import TextBatch, Units


class TrainingStep(nn.Module):
    """A tokenizer and a method; rows and their images -> (reconstruction, the loss's terms by name).

    The terms are weighted and their sum is the loss: L1, perceptual, the host quantizer's own, the added levels' and
    the method's. `last` is what the method saw in the latest pass. While settling the host is an autoencoder, its
    latents unquantized. With bf16 the host and the perceptual network run in it; quantizer, method and losses do not.
    """

    def __init__(
        self, tokenizer: Tokenizer, method: Method, corpus: Corpus, perceptual: nn.Module | None, recipe: Recipe
    ) -> None:
        super().__init__()
        self.tokenizer, self.method, self.recipe = tokenizer, method, recipe
        self.clock: StepTimer | None = None
        self.last: Step | None = None
        self._aside = (corpus, perceptual)  # neither trained nor saved: in a tuple, no submodule

    def forward(self, rows: Tensor, images: Tensor, number: int, settling: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Rows b of the corpus, their images b 3 r r in [-1, 1], and how many optimizer steps came before."""
        bf16 = self.recipe.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            if settling:
                adapter = self.tokenizer.adapter
                reconstruction = adapter.decode(latents_of(adapter, images)).float()
                return reconstruction, self._seen(reconstruction, images)
            with _in_float32(self.tokenizer, enabled=bf16):
                output, codes = self.tokenizer(images)
            reconstruction = picture(output).float()
            terms = self._seen(reconstruction, images)
        terms["quantizer"] = codes.quantizer_loss.float()
        terms["level"] = self.recipe.codebook_loss_weight * codes.loss
        texts = LazyTexts(self._aside[0], rows, images.device)
        self.last = Step(
            number, self.recipe.steps, rows, images, reconstruction, codes, texts, first=self.recipe.settled
        )
        with self.clock.in_plugin():
            added = self.method(self.last)
        if double := sorted(terms.keys() & added.keys()):
            raise ValueError(f"method {self.method.name} names its term {double[0]}, which is the trainer's own")
        return reconstruction, terms | added

    def _seen(self, reconstruction: Tensor, images: Tensor) -> dict[str, Tensor]:
        """What the pixels say."""
        terms = {"pixel": F.l1_loss(reconstruction, images)}
        _, perceptual = self._aside
        if perceptual is not None:
            terms["perceptual"] = self.recipe.perceptual.weight * perceptual(reconstruction, images)
        return terms


class LazyTexts(Mapping[str, Units]):
    """The units of some rows' texts, gathered when a method first asks for them."""

    def __init__(self, corpus: Corpus, rows: Tensor, device: torch.device) -> None:
        self._source, self._batch = (corpus, rows, device), None

    def _gathered(self) -> TextBatch:
        if self._batch is None:
            self._batch = texts_of(*self._source)
        return self._batch

    def __getitem__(self, granularity: str) -> Units:
        return self._gathered()[granularity]

    def __iter__(self) -> Iterator[str]:
        return iter(self._gathered())

    def __len__(self) -> int:
        return len(self._gathered())


@contextmanager
def _in_float32(tokenizer: Tokenizer, *, enabled: bool) -> Iterator[None]:
    """Under autocast, the host's quantizer gets float32 and computes in it: bf16 changes up to 2 % of its choices."""
    if not enabled:
        yield
        return
    quantizer = find_module(tokenizer.host, tokenizer.adapter.quantizer)
    casts: list[Any] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        casts.append(torch.autocast(args[0].device.type, enabled=False))
        casts[-1].__enter__()
        return tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args), kwargs

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        if casts:
            casts.pop().__exit__(None, None, None)

    handles = [
        quantizer.register_forward_pre_hook(enter, with_kwargs=True),
        quantizer.register_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
