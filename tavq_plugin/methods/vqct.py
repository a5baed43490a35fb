"""VQCT: the host's codebook made from the words of the texts by a graph network."""

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

    The paper's: adjectives and nouns of the texts (more than 10 appearances) with frozen word embeddings; a graph
    that joins an adjective and the noun it stands before; a two-layer graph convolution from the embeddings to the
    codebook, adjectives in one part and nouns in the other. Codes have no parameters of their own: what one code
    learns moves the others.

    Our reading: the network is put on the host's codebook as a parametrization, so the host's quantizer, losses and
    lookup are its own, and each place takes the one code nearest to it, adjective or noun. Left out, as another
    quantizer would be needed: the paper's two tokens a place (half of the channels from the adjectives, half from the
    nouns) and the mean of several nearest codes. Embeddings are the store's, centred, instead of CLIP's of a prompt;
    parts of speech are HanTa's, and nouns keep their number. The source's dropout is left out: a codebook is read
    several times a step and must be the same each time. Of more words than codes the most frequent are taken; with
    fewer, words are repeated in turn, and what tells a repeated one from the first is learnt.

    Build it before the optimizer, DDP, and before a checkpoint is loaded: the network's parameters are the host's until
    `finish` writes the codebook and takes the network off. `hidden`: its width, by default the codes'.
    Raises ValueError for a host whose codebook is no parameter, and where no word appears often enough.
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
        self._place: tuple[nn.Module, str] | None = (module, name)  # in a tuple: the host is no part of a method

    def finish(self) -> None:
        """Leave the host with the codebook as it is now, under its own name; a second call does nothing."""
        if self._place is not None:
            parametrize.remove_parametrizations(*self._place, leave_parametrized=True)
            self._place = None


class Transfer(nn.Module):
    """Words to codes by two graph convolutions (Kipf & Welling 2017, eq. 8); u d -> k c.

    Â = D^-½ (A + 1) D^-½, A how often two words stand side by side; code i is that of word `rows[i]`. The input is what
    tells the codes of a repeated word apart; that of its first code is not read.
    """

    def __init__(self, words: Tensor, graph: WordGraph, shape: torch.Size, hidden: int) -> None:
        super().__init__()
        self.shape = shape
        rows = repeated(len(words), shape[0])
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
        # coordinates of about 1, as a network's inputs should be
        seen = self.mixed(F.normalize(words, dim=1) * words.shape[1] ** 0.5)
        self.register_buffer("seen", seen, persistent=False)
        self.first, self.second = nn.Linear(words.shape[1], hidden), nn.Linear(hidden, shape[1], bias=False)
        self.bias = nn.Parameter(torch.zeros(shape[1]))
        nn.init.zeros_(self.first.bias)
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)

    def mixed(self, values: Tensor) -> Tensor:
        """Â values; u c -> u c."""
        spread = values * self.own[:, None].to(values.dtype)
        return spread.index_add(0, self.target, self.weight[:, None].to(values.dtype) * values[self.source])

    def forward(self, apart: Tensor) -> Tensor:
        """The codebook, in its parameter's shape."""
        with torch.autocast(apart.device.type, enabled=False):
            codes = self.mixed(self.second(F.relu(self.first(self.seen)))) + self.bias
            return (codes[self.rows] + self.copies[:, None] * apart.view(self.shape)).view_as(apart)

    def right_inverse(self, codebook: Tensor) -> Tensor:
        """What the host's own codebook leaves: repeated words begin apart by its rows."""
        return (self.copies[:, None] * codebook.view(self.shape)).view_as(codebook)


def repeated(words: int, codes: int) -> Tensor:
    """The word of each code: all words in turn, over and over, then sorted so that codes of a word lie together; -> k.

    >>> repeated(3, 7).tolist()
    [0, 0, 0, 1, 1, 2, 2]
    """
    return (torch.arange(codes) % words).sort().values
