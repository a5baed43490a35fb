"""Take secrets, home folders and absolute paths out of values that are written to a file or shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "[masked]"
_SECRET_NAME = re.compile(
    r"(?:^|[._-])(?:(?:[a-z0-9]*[._-]?)(?:api[._-]?key|access[._-]?key|secret[._-]?key|private[._-]?key)"
    r"|key|token|secret|password|passwd|passphrase|pwd|credentials?|authorization|auth|bearer|cookie"
    r"|(?:wandb|comet|neptune|hf|openai|aws|azure)[._-]?(?:key|token))(?:$|[._-](?:id|value|env)$)",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"(?:sk|rk|pk)-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|AKIA[A-Z0-9]{12,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"
    r"|(?<=://)[^/\s@:]+:[^/\s@]+(?=@)|(?<=Bearer )\S+"
)
_HOME = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\Users\\)[^/\\\s:;,'\"]+|(?<![\w/.])/root(?=/|$)")


def names_a_secret(name: str) -> bool:
    """Whether a setting of this name usually holds a secret.

    >>> [names_a_secret(name) for name in ("wandb_api_key", "hf_token", "apiKey", "n_tokens", "tokenizer", "keys")]
    [True, True, True, False, False, False]
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return _SECRET_NAME.search(words) is not None


def redacted(text: str, *secrets: str | None) -> str:
    """The text without the given secrets, without what looks like a key, and with ~ in place of home folders.

    >>> redacted("/home/ann/runs, https://ann:pw@host, sk-0123456789abcdef0")
    '~/runs, https://[masked]@host, [masked]'
    """
    for secret in secrets:
        if secret:
            text = text.replace(secret, MASK)
    return _HOME.sub("~", _SECRET_VALUE.sub(MASK, text))


_PART = r"[^/\\\s:;,'\"()<>|]+"
_ABSOLUTE = re.compile(rf"(?<![\w.~…:/\\])(?:[A-Za-z]:\\|/)(?:{_PART}[/\\])*?({_PART}[/\\]{_PART})(?![\w/\\.-])")


def with_short_paths(value: Any) -> Any:
    """The same nested value; of each absolute path in its texts, only the last folder and the name are kept.

    >>> with_short_paths({"init": "/data/ann/runs/last.ckpt", "why": "no /x/y/z.png at https://h/a/b", "n": 1})
    {'init': '…/runs/last.ckpt', 'why': 'no …/y/z.png at https://h/a/b', 'n': 1}
    """
    if isinstance(value, str):
        return _ABSOLUTE.sub(r"…/\1", value)
    if isinstance(value, Mapping):
        return {key: with_short_paths(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(with_short_paths(part) for part in value) if type(value) in (list, tuple) else value
    return value
