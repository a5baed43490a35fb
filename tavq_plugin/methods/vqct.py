"""VQCT: a graph network makes the host's codebook from the words of the texts."""

from __future__ import annotations

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


class VQCT(Method):
    """Codebook transfer with part of speech (arXiv 2403.10071, CVPR 2024; released source).

    From the paper: the words are the adjectives and nouns that appear more than 10 times in the texts, with frozen
    embeddings. A graph joins each adjective with the nouns that it stands before. A two-layer graph convolution maps
    the embeddings to the codebook; one part of its codes are adjectives, the other nouns. Codes have no
    parameters of their own: what one code learns moves the others.

    Our reading: the network is a parametrization of the host's codebook, so the host keeps its quantizer, losses and
    lookup, and each place takes its one nearest code, adjective or noun. The paper's two tokens per place (half of the
    channels from adjectives, half from nouns) and its mean of several nearest codes are left out, as they need another
    quantizer. Embeddings come from the store, centred, not from CLIP; parts of speech come from HanTa, and plural
    nouns stay plural. The paper's dropout is left out, because a codebook is read several times per step and must be
    the same each time. If there are more words than codes, the most frequent words are taken; if fewer, words are
    repeated in turn, and the offset of a repeated code from the word's first code is learnt.

    Build it before the optimizer, before DDP and before loading a checkpoint: the network's parameters belong to the
    host until `finish` writes the codebook and removes the network.

    Args:
        threshold: Words must appear more often than this.
        hidden: Width of the network. None: the code width.

    Raises:
        ValueError: The host's codebook is not a parameter, or no word appears often enough.
    """

    name = "vqct"

    def __init__(
        self, tokenizer: Tokenizer, corpus: Corpus, *, seed: int = 0, threshold: int = 10, hidden: int | None = None
    ) -> None:
        super().__init__(tokenizer, corpus, seed=seed)
        module, name, table = learnt_table(tokenizer, self.name)
        store = corpus.store
        row = {word: i for i, word in enumerate(store.vocabulary)}
        texts = [corpus.texts[i] for i in corpus.train_rows]
        self.graph = word_graph(texts, above=threshold, known=row).most_frequent(len(table))
        ids = torch.tensor([[row[word] for word in self.graph.words]], device=store.table.device)
        words = padded_units(store.table, ids, torch.ones_like(ids, dtype=torch.bool), store.mean("word")).embeddings[0]
        with drawn_from(seed):
            transfer = Transfer(words.cpu(), self.graph, table.shape, hidden or table.shape[1])
        parametrize.register_parametrization(module, name, transfer.to(table.device))
        self._place: tuple[nn.Module, str] | None = (module, name)  # in a tuple: the host is not a submodule

    def finish(self) -> None:
        """Write the current codebook into the host's own parameter; a second call does nothing."""
        if self._place is not None:
            parametrize.remove_parametrizations(*self._place, leave_parametrized=True)
            self._place = None


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
