"""Part-of-speech tags from a spaCy model (installed, or a folder) in place of HanTa; nothing is downloaded."""

from __future__ import annotations

from functools import cache
from typing import Any

from tavq_plugin.moved import old_names

__getattr__ = old_names(__name__)  # names of the last release


# Universal part of speech → code letter of `phrase_chunker`; any other part of speech ends a phrase.
_CODES = dict(NOUN="n", PROPN="n", ADJ="a", NUM="m", DET="d", ADP="p", ADV="r", CCONJ="c", VERB="w")
_FINE_TAGS = {"VBG": "g", "VBN": "v", "VBD": "v", "POS": "s", "RP": "t"}  # tags of English models → code letter


@cache
def load_spacy_model(model: str) -> Any:
    """The model, without the components that words and phrases do not need.

    Raises ImportError, saying how to get the model.
    """
    try:
        import spacy

        return spacy.load(model, exclude=["ner", "parser", "lemmatizer", "textcat"])
    except (ImportError, OSError) as error:
        raise ImportError(
            f"spaCy model {model!r} cannot be loaded ({error}): pip install spacy and the model, or give its folder"
        ) from error


def model_name(model: str) -> str:
    """Language, name and version of a model; equal names mean equal tags."""
    meta = load_spacy_model(model).meta
    return f"spacy-{meta['lang']}-{meta['name']}-{meta['version']}"


def tag_sentence(model: str, sentence: str) -> tuple[list[tuple[int, int]], str]:
    """Token spans of a sentence, and one code letter per token.

    Raises ValueError if the model gives no part of speech.
    """
    document = load_spacy_model(model)(sentence)
    tokens = [token for token in document if not token.is_space]
    if tokens and not any(token.pos_ for token in tokens):
        raise ValueError(f"spaCy model {model!r} gives no parts of speech: give one with a tagger")
    return [(token.idx, token.idx + len(token)) for token in tokens], "".join(map(_code, tokens))


def _code(token: Any) -> str:
    if token.text == ",":
        return ","
    if token.like_url:
        return "x"
    if token.lower_ == "of":
        return "f"
    if token.pos_ in ("VERB", "PART", "ADP") and token.tag_ in _FINE_TAGS:
        return _FINE_TAGS[token.tag_]
    if token.pos_ == "PRON" and "Yes" in token.morph.get("Poss"):
        return "d"
    return _CODES.get(token.pos_, "x")
