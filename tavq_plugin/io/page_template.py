"""Templates of the HTML pages: text is escaped, and a value that is missing is an error."""

from __future__ import annotations

import base64
import hashlib
from typing import Any


def page_template(package: str, folder: str, name: str) -> Any:
    """The Jinja template `name` in a package's folder. Raises ImportError, with the mend, without jinja2."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(f'the page needs jinja2 ({error}): pip install "tavq-plugin[report]"') from error
    templates = Environment(
        loader=PackageLoader(package, folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return templates.get_template(name)


def policy_source(text: str) -> str:
    """What a content security policy says to allow this very script or style, and no other.

    >>> policy_source("a { color: red }")[:12]
    "'sha256-LHvA"
    """
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
