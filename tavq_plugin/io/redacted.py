"""Take secrets and home folders out of values that are written to a file or shown."""

from __future__ import annotations

import re

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
