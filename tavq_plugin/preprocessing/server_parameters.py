"""The parameters of requests to a server; those that it refuses are left out or renamed, as its error says."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

_OURS = ("max_tokens", "max_completion_tokens", "temperature", "seed")
_FIXED = ("model", "messages", "stream", "n")  # --extra-body cannot change them
_REFUSED = re.compile(
    r"unsupported|not support|n['’]t support|unrecogni[sz]ed|unknown|unexpected|extra|not permitted|not allowed"
    r"|not available|deprecated|forbidden|invalid (?:parameter|argument|field)|no such (?:parameter|field)",
    re.IGNORECASE,
)
_VALUE_REFUSED = re.compile(
    r"positive|must be|greater than|above|only the default|only \d|not? (?:be )?0", re.IGNORECASE
)


class ServerParameters:
    """What each request asks for, besides model and messages; safe for several threads.

    Args:
        max_new_tokens: Longest text, in tokens.
        temperature: Sampling temperature. 0 is greedy; a second attempt then uses 0.7.
        seed: Seed; a second attempt sends the next one.
        extra_body: More parameters. They replace those above of the same name; None leaves a parameter out.
        say: Called once with each parameter that the server refuses, in a sentence.

    Raises:
        ValueError: `extra_body` would change the model, the messages, or the number of answers.
    """

    def __init__(
        self,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        extra_body: Mapping[str, Any] | None,
        say: Callable[[str], object],
    ) -> None:
        self.extra_body = dict(extra_body or {})
        if fixed := [name for name in _FIXED if name in self.extra_body]:
            raise ValueError(f"--extra-body cannot set {', '.join(fixed)}: leave it out")
        self._max_new_tokens, self._temperature, self._seed, self._say = max_new_tokens, temperature, seed, say
        self._refused: set[str] = set()  # parameters that the server does not know
        self._refused_values: set[tuple[str, Any]] = set()
        self._said: set[str] = set()
        self._renamed = False  # whether max_tokens is called max_completion_tokens
        self._lock = threading.Lock()

    def of_attempt(self, attempt: int) -> dict[str, Any]:
        """The parameters of one request."""
        length = "max_completion_tokens" if self._renamed else "max_tokens"
        given = {
            length: self._max_new_tokens,
            "temperature": self._temperature or (0.7 if attempt else 0.0),
            "seed": self._seed + attempt,
        }
        with self._lock:
            given = {
                name: value
                for name, value in given.items()
                if name not in self._refused and (name, value) not in self._refused_values
            }
        return {name: value for name, value in {**given, **self.extra_body}.items() if value is not None}

    def mend(self, sent: Mapping[str, Any], error_body: str) -> bool:
        """Leave out or rename what the error of a request names; whether another request may now pass."""
        message, named = _message_and_names(error_body)
        mentioned = [name for name in _OURS if name in named or re.search(rf"(?<!\w){name}(?!\w)", message)]
        unknown = _REFUSED.search(message) is not None
        with self._lock:
            for name in mentioned:
                if name not in sent or name in self.extra_body:
                    continue
                if name == "max_tokens" and unknown and "max_completion_tokens" in message:
                    self._renamed = True
                    self._say_once(name, "the server wants max_completion_tokens in place of max_tokens: it is renamed")
                    return True
                by_value = name == "temperature" and _VALUE_REFUSED.search(message) is not None
                if by_value:
                    self._refused_values.add((name, sent[name]))
                elif unknown or (name in named and name in ("temperature", "seed")):
                    self._refused.add(name)
                else:
                    continue
                self._say_once(
                    name, f"the server refuses {name} {sent[name]} ({message[:200].strip()}): it is left out"
                )
                return True
        return False

    def _say_once(self, name: str, sentence: str) -> None:
        if name not in self._said:
            self._said.add(name)
            self._say(sentence)


def parse_extra_body(text: str | None) -> dict[str, Any]:
    """The parameters of `--extra-body`, a JSON object.

    >>> parse_extra_body('{"top_p": 0.9, "seed": null}')
    {'top_p': 0.9, 'seed': None}
    """
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--extra-body is not JSON ({error}): give an object, such as '{{\"top_p\": 0.9}}'") from None
    if not isinstance(found, dict):
        raise ValueError(f"--extra-body must be a JSON object, got {type(found).__name__}: give '{{\"top_p\": 0.9}}'")
    return found


def _message_and_names(error_body: str) -> tuple[str, set[str]]:
    """The words of an error, and the parameters that it names in fields (OpenAI's `param`, pydantic's `loc`)."""
    try:
        whole = json.loads(error_body)
    except ValueError:
        return error_body, set()
    if not isinstance(whole, dict):
        return error_body, set()
    error = whole.get("error", whole)
    named: set[str] = set()
    if isinstance(error, dict) and isinstance(error.get("param"), str):
        named.add(error["param"])
    detail = whole.get("detail")
    for fault in detail if isinstance(detail, list) else []:
        if isinstance(fault, dict) and isinstance(fault.get("loc"), list):
            named |= {str(step) for step in fault["loc"]}
    message = error.get("message") if isinstance(error, dict) else error
    return (message if isinstance(message, str) else error_body), named
