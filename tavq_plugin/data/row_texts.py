"""The texts of one row or JSON object, whichever of the known fields holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tavq_plugin.data.decode import MARK

TEXT_FIELDS = ("long_text", "text", "caption", "captions", "conversations")
IMAGE_FIELDS = ("image", "file_name", "filename")
_ANSWERS = ("gpt", "assistant", "model")  # who speaks in a conversation, other than the person who asks


def row_texts(row: Mapping[str, Any], text_field: str | None = None) -> tuple[str, list[str]]:
    """The text of a row ("" if it has captions only), and its captions; raises ValueError for what is no text.

    Args:
        row: The fields by name.
        text_field: The field with the text. Default: the first of `TEXT_FIELDS` that is not empty.

    >>> row_texts({"caption": ["A dog.", "It runs."]})
    ('', ['A dog.', 'It runs.'])
    >>> row_texts({"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]})
    ('A dog.', [])
    """
    text, captions = "", list[str]()
    for name in TEXT_FIELDS if text_field is None else (text_field,):
        value = row.get(name)
        if not value or (name != "captions" and (text or captions)):
            continue
        if isinstance(value, str) and (name != "captions" or text_field is not None):
            text = value.replace(MARK, "").strip()
        elif isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
            text = _answers(value)
        elif isinstance(value, list) and all(isinstance(caption, str) for caption in value):
            captions = [caption.replace(MARK, "") for caption in value]
        elif name in ("long_text", "captions"):
            raise ValueError('"long_text" must be a string and "captions" a list of strings')
        else:
            raise ValueError(f'"{name}" must be a string or a list of strings, got {type(value).__name__}')
    return text, captions


def _answers(turns: list[Mapping[str, Any]]) -> str:
    """What the model says in a conversation, as {"from", "value"} (LLaVA) or {"role", "content"}."""
    said = []
    for turn in turns:
        if "from" in turn and "value" in turn:
            who, words = turn["from"], turn["value"]
        elif "role" in turn and "content" in turn:
            who, words = turn["role"], turn["content"]
        else:
            raise ValueError(
                f'a conversation has a turn with the fields {", ".join(map(str, turn)) or "none"}; give "from" and '
                '"value", or "role" and "content"'
            )
        if not isinstance(words, str):
            raise ValueError(f"a turn of a conversation must be a string, got {type(words).__name__}")
        if who in _ANSWERS:
            said.append(words.replace(MARK, "").replace("<image>", "").strip())
    return " ".join(filter(None, said))


def fields_understood(text_field: str | None = None) -> str:
    """The names of the fields that may hold a text, for messages."""
    return f"the field {text_field!r} that was asked for" if text_field else ", ".join(TEXT_FIELDS)
