"""What a method adds to the training of a VQ tokenizer. The base class adds nothing: that is plain VQGAN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.types import Codes, TextBatch


@dataclass(frozen=True)
class Step:
    """One generator pass, as a method sees it."""

    number: int  #: optimizer steps before this one
    steps: int  #: of the whole run
    rows: Tensor  #: b, int64: rows of the corpus
    images: Tensor  #: b 3 r r in [-1, 1]
    reconstruction: Tensor  #: b 3 r r
    codes: Codes
    texts: TextBatch  #: of the same images, on their device
    first: int = 0  #: number of the run's first step with codes; earlier steps did not quantize


class Method(nn.Module):
    """A method's own parameters, its extra losses and what it does after an update.

    A method must not hold the tokenizer as a submodule, because the tokenizer's parameters are not its own. State that
    a resumed run needs, such as random generators, belongs in `state_dict()` (see `get_extra_state`).
    """

    name: ClassVar[str] = "vqgan"
    adversarial: ClassVar[bool] = True  #: trains with the recipe's discriminator
    perceptual: ClassVar[bool] = True  #: trains with the recipe's perceptual loss
    levels: ClassVar[bool] = False  #: if true, levels 1 and 2 send gradient to the host; else they are detached
    weighed_by: ClassVar[tuple[str, ...]] = ()  #: options that multiply what the method adds to the host's losses
    strengths: ClassVar[tuple[float, ...]] = (0.25, 1.0, 4.0, 16.0)  #: factors on them that `tavq tune` tries

    def __init__(self, tokenizer: Tokenizer, corpus: Corpus, *, seed: int = 0) -> None:
        super().__init__()

    @classmethod
    def resolved_options(cls, options: Mapping[str, Any], saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The options with a value for each that a run must save, as its default may change.

        `saved` holds the options of an earlier run, which decides what `options` leaves open.
        """
        return dict(options)

    @classmethod
    def at_strength(cls, strength: float, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with what `weighed_by` names multiplied by `strength`.

        >>> from tavq_plugin.methods import method_class
        >>> method_class("tavq").at_strength(2.0, {"balance": 0.5})["balance"]
        1.0
        """
        defaults = signature(cls).parameters
        return {**options, **{name: strength * options.get(name, defaults[name].default) for name in cls.weighed_by}}

    @classmethod
    def prepare_host(cls, host: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
        """Change a new host, before it is wrapped, as the method needs it; returns further arguments of `wrap`."""
        return {}

    @classmethod
    def takes_restarts(cls, options: Mapping[str, Any]) -> bool:
        """Whether the recipe's start of codes on latents and its restarts work on the codebook, with these options."""
        return True

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Extra loss terms by name, already weighted."""
        return {}

    def facts(self) -> dict[str, float]:
        """Numbers about the method on this corpus that a report shows; saved with a finished run."""
        return {}

    def start_codes(self, latents: Tensor) -> None:
        """Called once, before the first step with codes of a host that settled, if the recipe does not start its codes.

        `latents` are those of some training images, n c; the same on every process.
        """

    def after_update(self, step: Step) -> None:
        """Called after each optimizer step; a method may move the codebook here."""

    def finish(self) -> None:
        """Called after training: remove the method's changes to the host, so that its own code loads the weights."""


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Initialise parameters from a seed, on the CPU, without advancing any random stream."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs' streams too
        yield


def texts_of(corpus: Corpus, rows: Tensor, device: torch.device) -> TextBatch:
    """The units of these rows' texts, on a device."""
    return corpus.store.batch(device=device, rows=rows)
