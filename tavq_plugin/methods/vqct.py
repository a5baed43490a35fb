"""VQCT: a graph network makes the host's codebook from the words of the texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.methods.base import Method, drawn_from
from tavq_plugin.methods.codebook_table import learnt_table
from tavq_plugin.methods.word_graph import WordGraph, word_graph
from tavq_plugin.text.ragged import padded_units

DEFAULTS = {"lemmas": True, "fitted": True}  # saved with a run, as an earlier release had others


class VQCT(Method):
    """Codebook transfer with part of speech (arXiv 2403.10071, CVPR 2024), after its released code.

    The words are the adjectives and the nouns, these by their singular, that appear more than 10 times in the texts,
    with frozen embeddings. A graph joins each adjective with the nouns that it stands before. A two-layer graph
    convolution maps the embeddings to the codebook. Codes have no parameters of their own: what one code learns moves
    the others.

    Differences from the release:

    - Each place takes its one nearest code of k, adjective or noun, by the host's own quantizer: log2 k bits. The
      release gives half of the channels the mean of the two nearest adjectives, and the other half the nearest noun:
      for a adjectives and n nouns log2(a (a − 1) / 2 · n) bits. The method's `bits_per_place` has both numbers. So this
      is less than the release can do, at fewer bits.
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
    ) -> None:
        super().__init__(tokenizer, corpus, seed=seed)
        module, name, table = learnt_table(tokenizer, self.name)
        store = corpus.store
        row = {word: i for i, word in enumerate(store.vocabulary)}
        texts = [corpus.texts[i] for i in corpus.train_rows]
        self.graph = word_graph(texts, above=threshold, known=row, lemmas=lemmas).most_frequent(len(table))
        self.fitted, self._seed, self._codes = fitted, seed, len(table)
        ids = torch.tensor([[row[word] for word in self.graph.words]], device=store.table.device)
        words = padded_units(store.table, ids, torch.ones_like(ids, dtype=torch.bool), store.mean("word")).embeddings[0]
        with drawn_from(seed):
            transfer = Transfer(words.cpu(), self.graph, table.shape, hidden or table.shape[1])
        parametrize.register_parametrization(module, name, transfer.to(table.device))
        self._transfer = (transfer,)  # in a tuple: it belongs to the host
        self._place: tuple[nn.Module, str] | None = (module, name)  # in a tuple: the host is not a submodule

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
        found = {"adjectives": self.graph.adjectives, "nouns": len(self.graph.words) - self.graph.adjectives}
        return {**found, "bits_per_place": own, **({} if math.isnan(released) else {"released_bits": released})}

    def start_codes(self, latents: Tensor) -> None:
        """Fit the network to the latents, n c, and put the codes of repeated words on some of them."""
        if self.fitted and self._place is not None and len(latents) >= self._codes:
            module, name = self._place
            offsets = getattr(module.parametrizations, name).original
            fit_transfer(self._transfer[0], offsets, latents, torch.Generator().manual_seed(self._seed))

    def finish(self) -> None:
        """Write the current codebook into the host's own parameter; a second call does nothing."""
        if self._place is not None:
            parametrize.remove_parametrizations(*self._place, leave_parametrized=True)
            self._place = None


def fit_transfer(
    transfer: Transfer, offsets: Tensor, latents: Tensor, draw: torch.Generator, *, steps: int = 200
) -> None:
    """Move the network's codes onto latents n c, each of which should have a near code and each code a near latent.

    Adam on the mean squared distance of latents to their nearest code plus that of codes to their nearest latent, from
    the network's weights scaled to the latents. The codes of repeated words are then put on latents drawn at random.
    """
    weights = list(transfer.parameters())
    latents = latents.detach().float()
    mean, spread = latents.mean(0), (latents - latents.mean(0)).square().mean().sqrt()
    with torch.no_grad():
        codes = transfer(torch.zeros_like(offsets)).view(transfer.shape)
        transfer.second.weight *= spread / (codes - codes.mean(0)).square().mean().sqrt().clamp(min=1e-8)
        transfer.bias += mean - transfer(torch.zeros_like(offsets)).view(transfer.shape).mean(0)
    first = transfer.copies == 0
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
            some = latents[torch.randint(len(latents), (1024,), generator=draw).to(latents.device)]
            codes = transfer(torch.zeros_like(offsets)).view(transfer.shape)[first]
            apart = some.square().sum(1)[:, None] + codes.square().sum(1) - 2 * some @ codes.T
            loss = (apart.amin(1).mean() + apart.amin(0).mean()) / spread.square()
            gradients = torch.autograd.grad(loss, weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
    for weight in weights:
        weight.grad = None
    with torch.no_grad():
        chosen = latents[torch.randperm(len(latents), generator=draw)[: transfer.shape[0]].to(latents.device)]
        offsets.copy_((chosen - transfer(torch.zeros_like(offsets)).view(transfer.shape)).view_as(offsets))


class Transfer(nn.Module):
    """From words to codes by two graph convolutions (Kipf & Welling 2017, eq. 8); u d -> k c.

    Â = D^-½ (A + 1) D^-½, where A counts how often two words stand side by side; code i belongs to word `rows[i]`. The
    input holds offsets that are added to the repeated codes of a word; the entry for its first code is not read.
    """

    source: Tensor  # e, the word that an edge of the graph starts from
    target: Tensor  # e, the word that it leads to
    weight: Tensor  # e
    own: Tensor  # u, weight of each word's edge to itself
    rows: Tensor  # k, the word of each code
    copies: Tensor  # k, 1 for the repeated codes of a word, 0 for its first
    seen: Tensor  # u d, Â times the word embeddings

    def __init__(self, words: Tensor, graph: WordGraph, shape: torch.Size, hidden: int) -> None:
        super().__init__()
        self.shape = shape
        rows = words_of_codes(len(words), shape[0])
        first = torch.cat([torch.ones(1, dtype=torch.bool), rows[1:] != rows[:-1]])
        edges = torch.tensor([[a, n] for a, n in graph.edges], dtype=torch.long).view(-1, 2)
        weight = torch.tensor([float(count) for count in graph.edges.values()])
        source, target = torch.cat([edges, edges.flip(1)]).T
        weight = weight.repeat(2)
        degree = torch.ones(len(words)).index_add(0, target, weight)
        buffers = dict(source=source, target=target, weight=weight * (degree[source] * degree[target]) ** -0.5)
        buffers |= dict(own=1 / degree, rows=rows, copies=(~first).float())
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)
        # scaled so that coordinates are about 1, as a network's inputs should be
        seen = self.mixed(F.normalize(words, dim=1) * words.shape[1] ** 0.5)
        self.register_buffer("seen", seen, persistent=False)
        self.first, self.second = nn.Linear(words.shape[1], hidden), nn.Linear(hidden, shape[1], bias=False)
        self.bias = nn.Parameter(torch.zeros(shape[1]))
        nn.init.zeros_(self.first.bias)
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)

    def mixed(self, values: Tensor) -> Tensor:
        """Â times the values; u c -> u c."""
        spread = values * self.own[:, None].to(values.dtype)
        return spread.index_add(0, self.target, self.weight[:, None].to(values.dtype) * values[self.source])

    def forward(self, offsets: Tensor) -> Tensor:
        """The codebook, in its parameter's shape."""
        with torch.autocast(offsets.device.type, enabled=False):
            codes = self.mixed(self.second(F.relu(self.first(self.seen)))) + self.bias
            return (codes[self.rows] + self.copies[:, None] * offsets.view(self.shape)).view_as(offsets)

    def right_inverse(self, codebook: Tensor) -> Tensor:
        """Start the offsets from the host's own codebook, so that the codes of a repeated word differ."""
        return (self.copies[:, None] * codebook.view(self.shape)).view_as(codebook)


def words_of_codes(words: int, codes: int) -> Tensor:
    """The word of each code: words repeat in turn, and the codes of one word lie together; -> k.

    >>> words_of_codes(3, 7).tolist()
    [0, 0, 0, 1, 1, 2, 2]
    """
    return (torch.arange(codes) % words).sort().values
