"""The captioner that a command asks for: a model on this machine, or one on a server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tavq_plugin.preprocessing.caption_answer import Captioner
from tavq_plugin.preprocessing.captions_file import caption_settings
from tavq_plugin.preprocessing.local_captioner import CaptionerOutline, LocalCaptioner
from tavq_plugin.preprocessing.server_captioner import ServerCaptioner
from tavq_plugin.preprocessing.shard_captions import ShardCaptions

_LOCAL_OPTIONS = ("dtype", "device")
_SERVER_OPTIONS = ("concurrency", "timeout", "retries", "insecure", "extra_body", "say")


def choose_captioner(model: str, server: str | None, **options: Any) -> Callable[[], Captioner]:
    """A function that loads the captioner; options of the other kind are ignored.

    Raises ValueError if there are parameters for a server, but no server.
    """
    if server is None and options.get("extra_body"):
        raise ValueError("--extra-body is for a server: add --server, or leave it out")
    unused = _SERVER_OPTIONS if server is None else _LOCAL_OPTIONS
    used = {name: value for name, value in options.items() if name not in unused}
    return partial(LocalCaptioner, model, **used) if server is None else partial(ServerCaptioner, server, model, **used)


def choose_shard_captions(
    model: str,
    server: str | None,
    batch: int,
    *,
    prompt: str | None,
    with_captions: bool,
    image_size: int | None = None,
    **options: Any,
) -> ShardCaptions:
    """The captioner for `prepare`; no weights are loaded yet."""
    load = choose_captioner(model, server, **options)
    known: Any  # what is known of the captioner before its weights are loaded
    if server is not None:
        known = load()  # raises at once if the address is wrong
    else:
        known = CaptionerOutline(model, options["revision"], options["max_new_tokens"], options["temperature"])
    return ShardCaptions(
        load, model, known.revision, prompt if prompt is not None else getattr(known, "prompt", None), with_captions,
        batch, caption_settings(known, image_size),
    )  # fmt: skip
