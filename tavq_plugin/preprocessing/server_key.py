"""The key of a caption server: where it comes from, and how it is kept out of messages and texts."""

from __future__ import annotations

import base64
import os
import re
import urllib.parse

KEY_VARIABLE = "OPENAI_API_KEY"  # environment variable


def server_key() -> str:
    """The key, without spaces and line ends around it; "" if there is none."""
    return os.environ.get(KEY_VARIABLE, "").strip()


def without_key(message: str) -> str:
    """The message without the key, which a server may have sent back, as it is or encoded."""
    key = server_key()
    if not key:
        return message
    raw = key.encode()
    forms = {
        key,
        urllib.parse.quote(key, safe=""),
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
        raw.hex(),
    }
    for form in sorted(forms, key=len, reverse=True):
        escaped = r"\\*".join(map(re.escape, form))  # JSON may put backslashes before some characters
        message = re.sub(escaped, "[key]", message)
    return message
