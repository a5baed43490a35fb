"""From a page's content to one HTML file that needs no server and no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from tavq_plugin.io.page_template import page_template, policy_source

SCRIPTS = (
    "page.js",
    "text_on_image.js",
    "images.js",
    "code_maps.js",
    "code_cards.js",
    "codebook_map.js",
    "reconstructions.js",
    "training.js",
)
VIEWS = (
    ("images", "Images and texts"), ("maps", "Code maps"), ("codes", "Codes"), ("codebook", "Codebook"),
    ("reconstructions", "Reconstructions"), ("training", "Training"),
)  # fmt: skip


def page_html(content: Mapping[str, Any], *, live: bool = False) -> str:
    """The page of some content, from `page_content`.

    Only the scripts and the style of the package run in it, by their hashes; whatever texts hold is shown as text. With
    `live`, it has the view of the user's own images and may ask the server that it came from, and no other.

    Raises ImportError if jinja2 is not installed.
    """
    template = page_template("tavq_plugin.use", "explore", "explore.html.j2")
    from markupsafe import Markup  # it comes with jinja2

    scripts, style = _scripts(live), _packaged("explore.css")
    views = [*VIEWS, *([("live", "Your own")] if live else [])]
    return template.render(
        run=content["run"],
        data=content["data"],
        shown=len(content["images"]),
        evidence=content["evidence"],
        version=content["version"],
        views=views,
        live=live,
        policy=page_policy(live=live),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        content=Markup(_embedded(content)),
    )


def page_policy(*, live: bool = False) -> str:
    """The content security policy of the page: its own scripts and style by their hashes, pictures inside the page."""
    policy = {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": policy_source(_packaged("explore.css")),
        "script-src": " ".join(map(policy_source, _scripts(live))),
        "base-uri": "'none'",
        "form-action": "'none'",
        **({"connect-src": "'self'"} if live else {}),
    }
    return "; ".join(f"{name} {value}" for name, value in policy.items())


def _scripts(live: bool) -> list[str]:
    return [_packaged(name) for name in (*SCRIPTS, *(["live.js"] if live else []), "start.js")]


def _packaged(name: str) -> str:
    return (files("tavq_plugin.use.explore") / name).read_text(encoding="utf-8")


def _embedded(content: Mapping[str, Any]) -> str:
    """JSON that no text in it can end: <, > and & are escaped. ValueError for NaN or infinity."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates have no UTF-8
    for letter, escape in escapes.items():
        text = text.replace(letter, escape)
    return text
