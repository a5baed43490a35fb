"""The graph of a corpus' adjectives and nouns: which adjective stands before which noun."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from tavq_plugin.text.splitter import Splitter


@dataclass(frozen=True)
class WordGraph:
    """Adjectives first, then nouns, each from most to least frequent; an edge joins an adjective and a noun."""

    words: tuple[str, ...]
    adjectives: int  # how many of the words are adjectives
    counts: tuple[int, ...]  # how often each word appears
    edges: dict[tuple[int, int], int]  # (adjective, noun) → how often they stand side by side

    def most_frequent(self, size: int) -> WordGraph:
        """The graph of the `size` words that appear most, adjectives and nouns together, in the same order."""
        order = sorted(range(len(self.words)), key=lambda i: -self.counts[i])[:size]
        place = {old: new for new, old in enumerate(sorted(order))}
        return WordGraph(
            tuple(self.words[i] for i in place),
            sum(i < self.adjectives for i in place),
            tuple(self.counts[i] for i in place),
            {(place[a], place[n]): count for (a, n), count in self.edges.items() if a in place and n in place},
        )


def word_graph(
    texts: Iterable[str | None],
    *,
    above: int,
    known: Collection[str],
    splitter: Splitter | None = None,
    lemmas: bool = True,
) -> WordGraph:
    """Words that appear more than `above` times as a noun or as an adjective, and their edges.

    With `lemmas`, the forms of a noun are one word. It stands in the graph as its singular if that is among `known`,
    else as its most frequent form that is; a word without such a form is left out. A word that is both a noun and an
    adjective counts as two words. Raises ValueError if no word remains.

    >>> graph = word_graph(["A red car and a red bus. Two cars."], above=0, known={"red", "car", "bus"})
    >>> graph.words, graph.counts, graph.adjectives, graph.edges
    (('red', 'car', 'bus'), (2, 2, 1), 1, {(0, 1): 1, (0, 2): 1})
    """
    counts: Counter[tuple[str, str]] = Counter()
    forms: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    pairs: Counter[tuple[tuple[str, str], tuple[str, str]]] = Counter()
    splitter = splitter or Splitter()
    lemma_of = cache(splitter.lemma)
    for text in texts:
        for sentence in splitter.tagged(text):
            tokens = [(lemma_of(word) if lemmas and kind == "n" else word, kind) for word, kind in sentence]
            for token, (form, kind) in zip(tokens, sentence, strict=True):
                if kind in "an":
                    counts[token] += 1
                    forms[token][form] += form in known
            pairs.update((one, two) for one, two in pairwise(tokens) if one[1] + two[1] == "an")
    shown = {token: _known_form(token[0], found, known) for token, found in forms.items()}
    words = [token for token, count in counts.most_common() if count > above and shown[token]]
    words.sort(key=lambda token: token[1])  # stable: adjectives before nouns
    if not words:
        raise ValueError(
            f"no noun or adjective appears more than {above} times in the texts ({len(counts)} distinct ones were "
            "found): lower threshold=, or give more texts"
        )
    row = {token: i for i, token in enumerate(words)}
    return WordGraph(
        tuple(shown[token] for token in words),
        sum(kind == "a" for _, kind in words),
        tuple(counts[token] for token in words),
        {(row[one], row[two]): count for (one, two), count in pairs.items() if one in row and two in row},
    )


def _known_form(word: str, forms: Counter[str], known: Collection[str]) -> str:
    """The word itself if it is known, else its most frequent known form; "" without any."""
    if word in known:
        return word
    form, uses = max(forms.items(), key=lambda item: item[1])
    return form if uses else ""
