"""VQCT: a graph network makes the host's codebook from the words of the texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.methods.base import Method, drawn_from
from tavq_plugin.methods.codebook_table import learnt_table
from tavq_plugin.methods.vqct_network import Transfer, fit_transfer, words_of_codes
from tavq_plugin.methods.vqct_quantizer import PartOfSpeechQuantizer, put_in_host
from tavq_plugin.methods.word_graph import word_graph
from tavq_plugin.text.ragged import padded_units

DEFAULTS = {"lemmas": True, "fitted": True}  # saved with a run, as an earlier release had others


class VQCT(Method):
    """Codebook transfer with part of speech (arXiv 2403.10071, CVPR 2024), after its released code.

    The words are the adjectives and the nouns, these by their singular, that appear more than 10 times in the texts,
    with frozen embeddings. A graph joins each adjective with the nouns that it stands before. A two-layer graph
    convolution maps the embeddings to the codebook. Codes have no parameters of their own: what one code learns moves
    the others.

    Differences from the release:

    - By default each place takes its nearest code of k, adjective or noun, by the host's own quantizer: log2 k bits.
      The release gives half of the channels the mean of the two nearest adjectives, and the other half the nearest
      noun: for a adjectives and n nouns log2(a (a − 1) / 2 · n) bits, so it can do more, at more bits.
      `codes_per_place=3` does that too, with a quantizer in the place of the host's, which the host's own code cannot
      load; there the network's output has a half for each kind, where the release's halves share one output.
    - A recipe that settles the host first leaves the codebook far from the latents. When settling ends, the network is
      fitted to latents (`fitted=False` leaves that out), and the codes of repeated words are put on latents. The
      recipe's restarts are off, as no code is a parameter. The release starts from random weights and does not settle.
    - If there are more words than codes, the most frequent words are taken; if fewer, words are repeated in turn, and
      the offset of a repeated code from the word's first code is learnt. The release has as many codes as words.
    - Embeddings come from the store, centred, not from CLIP with a prompt; parts of speech and singulars come from
      HanTa, not from NLTK. The host's own loss weights are used.
    - The release's dropout between the layers is left out, because a codebook is read several times per step and must
      be the same each time.

    Build it before the optimizer, before DDP and before loading a checkpoint: the network's parameters belong to the
    host until `finish` writes the codebook and removes the network.

    Args:
        threshold: Words must appear more often than this.
        hidden: Width of the network. None: the code width, as in the release.
        lemmas: If true, the forms of a noun are one word.
        codes_per_place: 1, or 3 for two adjectives and a noun; then the host must be built from a recipe.
        fitted: If true, the network is fitted to the latents when settling ends.

    Raises:
        ValueError: The host's codebook is not a parameter, or no word appears often enough.
    """

    name = "vqct"

    def __init__(
        self,
        tokenizer: Tokenizer,
        corpus: Corpus,
        *,
        seed: int = 0,
        threshold: int = 10,
        hidden: int | None = None,
        lemmas: bool = True,
        fitted: bool = True,
        codes_per_place: int = 1,
    ) -> None:
        super().__init__(tokenizer, corpus, seed=seed)
        if codes_per_place not in (1, 3):
            raise ValueError(f"codes_per_place must be 1 or 3, got {codes_per_place}")
        module, name, table = learnt_table(tokenizer, self.name)
        store = corpus.store
        row = {word: i for i, word in enumerate(store.vocabulary)}
        texts = [corpus.texts[i] for i in corpus.train_rows]
        self.graph = word_graph(texts, above=threshold, known=row, lemmas=lemmas).most_frequent(len(table))
        self.fitted, self._seed, self._codes = fitted, seed, len(table)
        self.codes_per_place, self._halves = codes_per_place, [(slice(None), slice(None))]
        if codes_per_place == 3:
            self._halves = self._divide(tokenizer, table)
        ids = torch.tensor([[row[word] for word in self.graph.words]], device=store.table.device)
        words = padded_units(store.table, ids, torch.ones_like(ids, dtype=torch.bool), store.mean("word")).embeddings[0]
        with drawn_from(seed):
            transfer = Transfer(words.cpu(), self.graph, table.shape, hidden or table.shape[1])
        parametrize.register_parametrization(module, name, transfer.to(table.device))
        self._transfer = (transfer,)  # in a tuple: it belongs to the host
        self._place: tuple[nn.Module, str] | None = (module, name)  # in a tuple: the host is not a submodule

    def _divide(self, tokenizer: Tokenizer, table: Tensor) -> list[tuple[slice, slice]]:
        """Tell the quantizer which codes are adjectives; -> codes and channels of the adjectives, and of the nouns."""
        quantizers = [part for part in tokenizer.host.modules() if isinstance(part, PartOfSpeechQuantizer)]
        if len(quantizers) != 1:
            raise ValueError("codes_per_place=3 needs the host that VQCT.prepare_host changed: build it from a recipe")
        adjectives = int((words_of_codes(len(self.graph.words), len(table)) < self.graph.adjectives).sum())
        if adjectives < 2 or adjectives == len(table):
            raise ValueError(
                f"codes_per_place=3 needs at least two adjectives and a noun among the codes, got {adjectives} and "
                f"{len(table) - adjectives}: lower threshold=, or give more texts"
            )
        quantizers[0].adjectives.fill_(adjectives)
        half = table.shape[1] // 2
        return [(slice(adjectives), slice(half)), (slice(adjectives, None), slice(half, None))]

    @classmethod
    def prepare_host(cls, host: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
        """With codes_per_place=3, a quantizer of three codes in the place of the host's own."""
        return put_in_host(host) if options.get("codes_per_place", 1) == 3 else {}

    @classmethod
    def resolved_options(cls, options: Mapping[str, Any], saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The options with those that an earlier release had other defaults for."""
        return {**DEFAULTS, **{name: saved[name] for name in DEFAULTS if saved and name in saved}, **options}

    @classmethod
    def takes_restarts(cls, options: Mapping[str, Any]) -> bool:
        """Never: no code is a parameter."""
        return False

    @property
    def bits_per_place(self) -> tuple[float, float]:
        """Bits of a place's one code here, and of the two adjectives and the noun that the release would give it.

        The second is NaN if there are fewer than two adjectives or no noun.
        """
        adjectives, nouns = self.graph.adjectives, len(self.graph.words) - self.graph.adjectives
        triples = adjectives * (adjectives - 1) // 2 * nouns
        return math.log2(self._codes), math.log2(triples) if triples else math.nan

    def facts(self) -> dict[str, float]:
        """Words of the graph, and the bits of a place here and in the release."""
        own, released = self.bits_per_place
        found: dict[str, float] = {
            "adjectives": self.graph.adjectives,
            "nouns": len(self.graph.words) - self.graph.adjectives,
        }
        bits = released if self.codes_per_place == 3 else own
        found |= {"codes_per_place": self.codes_per_place, "bits_per_place": bits}
        return found if math.isnan(released) else {**found, "released_bits": released}

    def start_codes(self, latents: Tensor) -> None:
        """Fit the network to the latents, n c, and put the codes of repeated words on some of them."""
        if self.fitted and self._place is not None and len(latents) >= self._codes:
            module, name = self._place
            offsets = getattr(module.parametrizations, name).original
            draw = torch.Generator().manual_seed(self._seed)
            fit_transfer(self._transfer[0], offsets, latents, draw, parts=self._halves)

    def finish(self) -> None:
        """Write the current codebook into the host's own parameter; a second call does nothing."""
        if self._place is not None:
            parametrize.remove_parametrizations(*self._place, leave_parametrized=True)
            self._place = None
