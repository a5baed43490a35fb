"""Split long text into words, phrases and sentences: each distinct unit once, with its place in the text."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module

from tavq_plugin.text import english_corrections, phrase_chunker, spacy_tags
from tavq_plugin.text.languages import LANGUAGES, tagger
from tavq_plugin.text.plain_text import PlainText, plain_text
from tavq_plugin.text.sentence_spans import sentence_spans
from tavq_plugin.text.word_tokens import LONGEST_WORD, TOKEN, composed, is_latin, is_taggable, is_word
from tavq_plugin.types import GRANULARITIES

VERSION = 2  # of the splitting rules; part of a store's fingerprint

# Each character becomes one character, so offsets stay valid.
_PLAIN = str.maketrans(
    {**dict.fromkeys("‘’‚‛′´", "'"), **dict.fromkeys("“”„‟″«»", '"'), **dict.fromkeys("‐‑‒−", "-")}
    | {**dict.fromkeys("\u00a0\u2007\u202f\u3000", " "), **dict.fromkeys("\u2028\u2029\x0b\x0c\x85", "\n")}
    | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")  # lone surrogates have no UTF-8
)


@dataclass(frozen=True)
class Unit:
    """A distinct unit of one text."""

    text: str  #: as it is encoded: single spaces; words and phrases in lower case
    start: int  #: text[start:end] is its first appearance
    end: int
    count: int  #: how often it appears in this text


@dataclass(frozen=True)
class TextUnits:
    """The distinct units of one text, in order of first appearance."""

    word: tuple[Unit, ...] = ()
    phrase: tuple[Unit, ...] = ()
    sentence: tuple[Unit, ...] = ()
    unread: int = 0  #: letters of scripts that the tagger does not know; they are in sentences only

    def __getitem__(self, granularity: str) -> tuple[Unit, ...]:
        if granularity not in GRANULARITIES:
            raise KeyError(f"there is no granularity {granularity!r}: give one of {', '.join(GRANULARITIES)}")
        return getattr(self, granularity)

    def texts(self, granularity: str) -> list[str]:
        """The strings of one granularity."""
        return [unit.text for unit in self[granularity]]


@dataclass(frozen=True)
class Splitter:
    """Splits a text into words, phrases and sentences; call it on a text.

    Words are content words in lower case, without auxiliaries. Phrases drop their leading determiner, which says
    nothing about the image: "a dog", "the dog" and "his dog" become one unit. A verb phrase is a verb with its
    object: "wearing a red hat".

    Args:
        words: Kinds of words to keep. Default: nouns, adjectives, verbs and numbers.
        phrases: Kinds of phrases to keep: "noun", "verb". Default: both.
        language: "en", "de" or "nl"; "zh" and "ja" give sentences, and words if there is a segmenter.
        spacy: Name or folder of a spaCy model, of any language, that tags in place of HanTa. Default: HanTa.
        segmenter: "module:function" that cuts a string into its words in order, such as "jieba:lcut".
        stop: Words and phrases to leave out; see `frequent_units`.

    Raises:
        ValueError: A kind or the language is unknown, or the language has a tagger and a segmenter is given.

    >>> Splitter(phrases=("noun",))("A red car is parked.").texts("phrase")
    ['red car']
    """

    words: tuple[str, ...] = ("noun", "adjective", "verb", "number")
    phrases: tuple[str, ...] = ("noun", "verb")
    language: str = "en"
    spacy: str | None = None
    segmenter: str | None = None
    stop: frozenset[str] = frozenset()
    _codes: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, given, known in (
            ("words", self.words, tuple(phrase_chunker.WORD_KINDS)),
            ("phrases", self.phrases, _PHRASES),
        ):
            unknown = [kind for kind in given if kind not in known]
            if isinstance(given, str) or unknown:
                raise ValueError(f"{name}={given!r}: give a tuple of {', '.join(map(repr, known))}")
        if self.language not in LANGUAGES:
            raise ValueError(f"language={self.language!r}: give one of {', '.join(LANGUAGES)}")
        if self.segmenter is not None and LANGUAGES[self.language].model is not None:
            raise ValueError(f"segmenter={self.segmenter!r}: only zh and ja need one, {self.language} has a tagger")
        if isinstance(self.stop, str):
            raise ValueError(f"stop={self.stop!r}: give a set of strings")
        object.__setattr__(self, "stop", frozenset(self.stop))
        object.__setattr__(self, "_codes", frozenset("".join(phrase_chunker.WORD_KINDS[kind] for kind in self.words)))

    @property
    def fingerprint(self) -> str:
        """Splitters with equal fingerprints split every text alike."""
        name = f"units-{VERSION}:{'+'.join(self.words)}:{'+'.join(self.phrases)}"
        if self.language != "en":
            name += f":{self.language}" + (f":{self.segmenter}" if self.segmenter else "")
        if self.spacy:
            name += f":{spacy_tags.model_name(self.spacy)}"
        if self.stop:
            name += ":stop-" + hashlib.sha256("\n".join(sorted(self.stop)).encode()).hexdigest()[:12]
        return name

    @property
    def supported(self) -> tuple[str, ...]:
        """The granularities of this language: zh and ja give no phrases, and no words without a segmenter."""
        if self.spacy is not None or LANGUAGES[self.language].model is not None:
            return GRANULARITIES
        return ("word", "sentence") if self.segmenter else ("sentence",)

    def __call__(self, text: str | None) -> TextUnits:
        """Split one text; a text without letters and digits has no units.

        A tagger's words and phrases are kept only if they have a letter of the Latin script or a digit.
        """
        if text is None:
            return TextUnits()
        if not isinstance(text, str):
            raise TypeError(f"a text must be a string, got {type(text).__name__}: give its text field")
        read = plain_text(text.translate(_PLAIN))
        plain = read.text.replace("`", "'")
        found: dict[str, _Tally] = {granularity: _Tally() for granularity in GRANULARITIES}
        for start, end in sentence_spans(plain, self.language):
            found["sentence"].add(start, end, plain[start:end])
            for granularity, first, last, unit in self._words_and_phrases(plain, start, end):
                found[granularity].add(first, last, unit)
        for granularity in ("word", "phrase"):
            found[granularity].drop(self.stop)
        units = {granularity: tally.units(read) for granularity, tally in found.items()}
        return TextUnits(**units, unread=self._unread(plain))

    def _unread(self, plain: str) -> int:
        """Letters without words: those that are not Latin, if the tagger is one of HanTa's."""
        if plain.isascii() or self.spacy is not None or LANGUAGES[self.language].model is None:
            return 0
        return sum(character.isalpha() and not is_latin(character) for character in plain)

    def _words_and_phrases(self, plain: str, start: int, end: int) -> Iterator[tuple[str, int, int, str]]:
        """Granularity, start, end and string of each word and phrase of one sentence."""
        if "phrase" not in self.supported:
            for first, last in _segments(plain, start, end, self.segmenter) if self.segmenter else ():
                yield "word", first, last, plain[first:last].lower()
            return
        spans, tokens, codes = self._codes_of(plain, start, end)
        for token, code, span in zip(tokens, codes, spans, strict=True):
            if code in self._codes and is_word(token):
                yield "word", *span, token.lower()
        for first, last in sorted(span for kind in self.phrases for span in _PHRASES[kind](codes)):
            if any(map(is_word, tokens[first:last])):
                start, end = spans[first][0], spans[last - 1][1]
                yield "phrase", start, end, plain[start:end].lower()

    def tagged(self, text: str | None) -> Iterator[list[tuple[str, str]]]:
        """Each sentence's lower-case tokens with their code letters (`phrase_chunker`); "x" for what is not a word.

        Raises ValueError if the language has no tagger.

        >>> list(Splitter().tagged("A red car."))
        [[('a', 'd'), ('red', 'a'), ('car', 'n'), ('.', 'x')]]
        """
        if "phrase" not in self.supported:
            raise ValueError(
                f"parts of speech need a tagger, and {self.language!r} has none: give spacy=, the name of a model"
            )
        plain = plain_text((text or "").translate(_PLAIN)).text.replace("`", "'")
        for start, end in sentence_spans(plain, self.language):
            _, tokens, codes = self._codes_of(plain, start, end)
            yield [(token.lower(), code if is_word(token) else "x") for token, code in zip(tokens, codes, strict=True)]

    def lemma(self, noun: str) -> str:
        """A noun's singular in lower case, by HanTa; the noun itself with spaCy's tags or without a tagger.

        >>> Splitter().lemma("buses"), Splitter().lemma("men")
        ('bus', 'man')
        """
        model = LANGUAGES[self.language].model
        if self.spacy is not None or model is None or len(noun) > LONGEST_WORD:
            return noun
        return tagger(model).analyze(noun, taglevel=1)[0].lower() or noun

    def _codes_of(self, plain: str, start: int, end: int) -> tuple[list[tuple[int, int]], list[str], str]:
        """Spans, tokens and code letters of one sentence."""
        if self.spacy is not None:
            within, codes = spacy_tags.tag_sentence(self.spacy, plain[start:end])
            spans = [(start + a, start + b) for a, b in within]
            tokens = [composed(plain[a:b]) for a, b in spans]
        else:
            language = LANGUAGES[self.language]
            spans = [match.span() for match in TOKEN.finditer(plain, start, end)]
            tokens = [composed(plain[a:b]) for a, b in spans]
            # The tagger needs the text's own case; what is no word of its language is tagged as punctuation.
            short = [token if is_taggable(token) else "-" for token in tokens]
            model = tagger(language.model)
            tags = model.tag_sent(short, taglevel=0)
            codes = phrase_chunker.code_letters(short, tags, language)
            if self.language == "en":
                codes = english_corrections.corrected_codes(short, tags, codes, model.tag_word)
        return spans, tokens, codes


_PHRASES = {"noun": phrase_chunker.noun_phrases, "verb": phrase_chunker.verb_phrases}


class _Tally:
    """Distinct strings in order of first appearance, each with its first span and its count."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {}

    def add(self, start: int, end: int, unit: str) -> None:
        entry = self.seen.setdefault(" ".join(composed(unit).split()), [start, end, 0])
        entry[2] += 1

    def drop(self, units: frozenset[str]) -> None:
        for unit in units.intersection(self.seen):
            del self.seen[unit]

    def units(self, read: PlainText) -> tuple[Unit, ...]:
        """The units, with their places in the text as it was given."""
        if read.starts is None:
            return tuple([Unit(text, *entry) for text, entry in self.seen.items()])
        return tuple([Unit(text, *read.span(start, end), count) for text, (start, end, count) in self.seen.items()])


def split(text: str | None) -> TextUnits:
    """Words, phrases and sentences of one text, by the default `Splitter`.

    >>> units = split("A boy in a red shirt stands on a mountain. He isn't sad.")
    >>> units.texts("word")
    ['boy', 'red', 'shirt', 'stands', 'mountain', 'sad']
    >>> units.texts("phrase")
    ['boy', 'red shirt', 'stands on a mountain', 'mountain']
    >>> units.sentence[1]
    Unit(text="He isn't sad.", start=43, end=56, count=1)
    """
    return _DEFAULT(text)


_DEFAULT = Splitter()


def _segments(plain: str, start: int, end: int, segmenter: str) -> Iterator[tuple[int, int]]:
    """Spans of the words that a segmenter finds, without punctuation."""
    place = start
    for word in _load_function(segmenter)(plain[start:end]):
        first = plain.find(word, place, end)
        if word.strip() and first >= 0:
            place = first + len(word)
            if any(character.isalnum() for character in word) and len(word) <= LONGEST_WORD:
                yield first, place


@cache
def _load_function(name: str) -> Callable[[str], Iterable[str]]:
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(f"segmenter {name!r} cannot be loaded ({error}): give 'module:function'") from error


def frequent_units(texts: Iterable[str | None], share: float = 0.2, splitter: Splitter | None = None) -> frozenset[str]:
    """Words and phrases in more than this share of the texts, such as "image" and "scene"; for `Splitter(stop=...)`.

    >>> sorted(frequent_units(["The image shows a dog.", "The image shows a car.", "A dog."], share=0.6))
    ['dog', 'image', 'shows']
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} is not a share of the texts: give a number above 0 and at most 1")
    splitter, number = splitter or _DEFAULT, 0
    counts: Counter[str] = Counter()
    for number, text in enumerate(texts, 1):  # noqa: B007 - used after
        units = splitter(text)
        counts.update({*units.texts("word"), *units.texts("phrase")})
    return frozenset(unit for unit, count in counts.items() if count > share * number)
