"""Read the answers of a chat server: texts, refusals, thoughts, why a text ended, and how many tokens it took."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tavq_plugin.preprocessing.caption_answer import CaptionAnswer
from tavq_plugin.preprocessing.server_key import without_key

_FINISH_FLAGS = {"length": "cut", "max_tokens": "cut", "content_filter": "filtered", "safety": "filtered"}
_FILTER_WORDS = ("content_filter", "content_policy", "responsibleaipolicyviolation", "data_inspection_failed")


def read_completion(answer: bytes) -> CaptionAnswer:
    """The text of a chat completion with its flag and tokens; raises ValueError for any other answer.

    A thought that the server keeps apart (`reasoning_content`, or a part of another kind) is no part of the text.

    >>> read_completion(b'{"choices": [{"message": {"content": " A dog. "}, "finish_reason": "length"}]}')
    CaptionAnswer(text='A dog.', flag='cut', prompt_tokens=0, completion_tokens=0)
    """
    try:
        whole = json.loads(answer)
        choice = whole["choices"][0]
        message = choice["message"]
        text, refusal = _joined_parts(message.get("content"))
        refusal = message.get("refusal") or refusal
        thought = message.get("reasoning_content") or message.get("reasoning")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        start = without_key(answer[:4096].decode("utf-8", "replace"))[:80]
        raise ValueError(f"the answer is no chat completion ({without_key(str(error))[:80]}): {start!r}") from error
    flag = _FINISH_FLAGS.get(str(choice.get("finish_reason")).lower())
    if refusal and flag is None:
        flag = "refusal"
    elif thought and not text and flag is None:
        flag = "thinking"
    text = without_key((text or (refusal if isinstance(refusal, str) else "")).encode("utf-8", "replace").decode())
    usage = whole.get("usage")
    return CaptionAnswer(
        text.strip(), flag, _whole_number(usage, "prompt_tokens"), _whole_number(usage, "completion_tokens")
    )


def is_filtered(error_body: str) -> bool:
    """Whether an error says that a content filter stopped the image or its text.

    >>> is_filtered('{"error": {"code": "content_filter"}}'), is_filtered('{"error": "no such model"}')
    (True, False)
    """
    return any(word in error_body.lower() for word in _FILTER_WORDS)


def _joined_parts(content: Any) -> tuple[str, str]:
    """Text and refusal of a message's content: a string, nothing, or a list of parts."""
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise ValueError(f"the text of the answer is of type {type(content).__name__}")
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    texts = [part["text"] for part in parts if part.get("type", "text") in ("text", "output_text")]
    refusals = [part["refusal"] for part in parts if part.get("type") == "refusal"]
    return "".join(texts), "".join(refusals)


def _whole_number(usage: Any, name: str) -> int:
    number = usage.get(name) if isinstance(usage, Mapping) else None
    return number if isinstance(number, int) and number >= 0 else 0
