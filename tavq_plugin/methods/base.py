"""What a method adds to the training of a VQ tokenizer; the base class adds nothing, which is plain VQGAN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.types import Codes, TextBatch


@dataclass(frozen=True)
class Step:
    """One generator pass, as a method sees it."""

    number: int  # optimizer steps before this one
    steps: int  # of the whole run
    rows: Tensor  # b, int64, of the corpus
    images: Tensor  # b 3 r r in [-1, 1]
    reconstruction: Tensor  # b 3 r r
    codes: Codes
    texts: TextBatch  # of the same images, on their device
    first: int = 0  # number of the run's first step with codes (those before it, if any, did not quantize)


class Method(nn.Module):
    """A method's own parameters, its extra losses and what it does after an update; one file each beside this one.

    Parameters of the tokenizer are not a method's: it must not hold the tokenizer as a submodule. State that must
    survive a resume, random generators among it, is in `state_dict()` (`get_extra_state`).
    """

    name: ClassVar[str] = "vqgan"
    adversarial: ClassVar[bool] = True  # trained with the recipe's discriminator
    perceptual: ClassVar[bool] = True  # and with its perceptual loss
    levels: ClassVar[bool] = False  # whether the host learns through levels 1 and 2; else they learn beside it

    def __init__(self, tokenizer: Tokenizer, corpus: Corpus, *, seed: int = 0) -> None:
        super().__init__()

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Extra terms of the loss, weighted, by name."""
        return {}

    def after_update(self, step: Step) -> None:
        """Called once an optimizer step is done (a codebook may be moved here)."""

    def finish(self) -> None:
        """Called once training is over: what was put on the host comes off, so that its own code loads the weights."""


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """New parameters are drawn from a seed of their own, on the CPU, and no random stream moves."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs' streams too
        yield


def texts_of(corpus: Corpus, rows: Tensor, device: torch.device) -> TextBatch:
    """The units of the texts of the same rows, on a device."""
    return corpus.store.batch(rows.tolist(), device)
