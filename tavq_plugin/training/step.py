"""One generator pass as the forward of one module, so that DDP and FSDP see every parameter that it uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.hosts.call_sites import holding_module
from tavq_plugin.hosts.codebook_drift import CodebookDrift
from tavq_plugin.hosts.hooks import tapped
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.methods.base import Method, Step, texts_of
from tavq_plugin.training.build_host import find_reconstruction
from tavq_plugin.training.codebook_restarts import encode_latents
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.schedule import Phase
from tavq_plugin.training.timer import StepTimer
from tavq_plugin.types import Codes, TextBatch, Units

TEXT_BYTES = 2**30  # a larger table of text embeddings stays off the GPU


class TrainingStep(nn.Module):
    """A tokenizer and a method; rows and their images -> (reconstruction, the loss terms by name).

    The terms are weighted, and the loss is their sum: L1, perceptual, the host quantizer's own, the added levels' and
    the method's. `last` is what the method saw in the latest pass. While `settling`, the host is an autoencoder without
    quantization. With bf16, the host and the perceptual network run in bf16; quantizer, method and losses stay in
    float32.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        method: Method,
        corpus: Corpus,
        perceptual: nn.Module | None,
        recipe: Recipe,
        phase: Phase,
    ) -> None:
        super().__init__()
        self.tokenizer, self.method, self.recipe, self.phase = tokenizer, method, recipe, phase
        self.timer: StepTimer  # set by the training loop
        self.last: Step
        self.drift = CodebookDrift()  # its answer is read with the history's rows
        self._not_saved = (corpus, perceptual)  # in a tuple, so that the network is not a submodule

    def forward(self, rows: Tensor, images: Tensor, number: int, settling: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """One pass over rows b of the corpus and their images b 3 r r in [-1, 1], after `number` optimizer steps."""
        bf16 = self.recipe.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            if settling:
                adapter = self.tokenizer.adapter
                reconstruction = adapter.decode(encode_latents(adapter, images)).float()
                return reconstruction, self._pixel_terms(reconstruction, images)
            with _in_float32(self.tokenizer, enabled=bf16):
                output, codes = self._output_and_codes(images, number + 1)
            found = find_reconstruction(output)
            assert found is not None  # `refuse_resolution` refuses such a host
            reconstruction = found.float()
            terms = self._pixel_terms(reconstruction, images)
        assert codes.quantizer_loss is not None  # the tokenizer's own call has it
        terms["quantizer"] = codes.quantizer_loss.float()
        terms["level"] = self.recipe.codebook_loss_weight * codes.loss
        texts = LazyTexts(self._not_saved[0], rows, images.device)
        self.last = Step(
            number, self.phase.last, rows, images, reconstruction, codes, texts, first=self.phase.first_coded
        )
        with self.timer.in_plugin():
            added = self.method(self.last)
        self.last = replace(self.last, codes=replace(codes, copies=()))  # they hold the host's graph
        if double := sorted(terms.keys() & added.keys()):
            raise ValueError(
                f"method {self.method.name} and the trainer both have a loss term {double[0]}: rename the method's"
            )
        return reconstruction, terms | added

    def _output_and_codes(self, images: Tensor, step: int) -> tuple[Any, Codes]:
        """The tokenizer's; in some steps of a method that uses the added levels, their codebook is checked too."""
        if not (self.method.levels and self.drift.is_due(step)):
            return self.tokenizer(images)
        adapter = self.tokenizer.adapter
        with tapped(adapter.model, at=[adapter.quantizer]) as recorder:
            output, codes = self.tokenizer(images)
        self.drift.check_call(adapter, self.tokenizer.hierarchy, recorder.take()[adapter.quantizer], step)
        return output, codes

    def _pixel_terms(self, reconstruction: Tensor, images: Tensor) -> dict[str, Tensor]:
        """The terms that compare pixels: L1, and the perceptual loss if there is one."""
        terms = {"pixel": F.l1_loss(reconstruction, images)}
        _, perceptual = self._not_saved
        if perceptual is not None:
            terms["perceptual"] = self.recipe.perceptual.weight * perceptual(reconstruction, images)
        return terms


class LazyTexts(Mapping[str, Units]):
    """The units of some rows' texts, gathered when a method first asks for them."""

    def __init__(self, corpus: Corpus, rows: Tensor, device: torch.device) -> None:
        self._source = (corpus, rows, device)
        self._batch: TextBatch | None = None

    def _units(self) -> TextBatch:
        if self._batch is None:
            self._batch = texts_of(*self._source)
        return self._batch

    def __getitem__(self, granularity: str) -> Units:
        return self._units()[granularity]

    def __iter__(self) -> Iterator[str]:
        return iter(self._units())

    def __len__(self) -> int:
        return len(self._units())


@contextmanager
def _in_float32(tokenizer: Tokenizer, *, enabled: bool) -> Iterator[None]:
    """Keep the host's quantizer in float32 under autocast: bf16 would change up to 2 % of the chosen codes."""
    if not enabled:
        yield
        return
    quantizer = holding_module(tokenizer.host, tokenizer.adapter.quantizer)
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


def with_texts_on(device: torch.device, corpus: Corpus) -> Corpus:
    """The corpus with its unit embeddings on the GPU, if there is one and they fit in TEXT_BYTES."""
    table = corpus.store.table
    if device.type == "cpu" or table.numel() * table.element_size() > TEXT_BYTES:
        return corpus
    return replace(corpus, store=corpus.store.to(device))
