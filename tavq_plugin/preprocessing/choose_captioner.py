"""The captioner that a command asks for: a model on this machine, or one on a server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tavq_plugin.preprocessing.caption_answer import Captioner
from tavq_plugin.preprocessing.local_captioner import LocalCaptioner, resolved_revision
from tavq_plugin.preprocessing.server_captioner import ServerCaptioner
from tavq_plugin.preprocessing.shard_captions import ShardCaptions

_LOCAL_OPTIONS, _SERVER_OPTIONS = ("dtype", "device"), ("concurrency", "timeout", "retries", "insecure")


def choose_captioner(model: str, server: str | None, batch: int, **options: Any) -> tuple[Callable[[], Captioner], int]:
    """A function that loads the captioner, and its images per batch; options of the other kind are ignored."""
    unused = _SERVER_OPTIONS if server is None else _LOCAL_OPTIONS
    used = {name: value for name, value in options.items() if name not in unused}
    if server is None:
        return partial(LocalCaptioner, model, **used), batch
    return partial(ServerCaptioner, server, model, **used), max(batch, 2 * used["concurrency"])


def choose_shard_captions(
    model: str, server: str | None, batch: int, *, prompt: str | None, with_captions: bool, **options: Any
) -> ShardCaptions:
    """The captioner for `prepare`; no weights are loaded yet."""
    load, batch = choose_captioner(model, server, batch, **options)
    if server is not None:
        load()  # raises at once if the address is wrong
    revision = options["revision"] if server is not None else resolved_revision(model, options["revision"])
    return ShardCaptions(load, model, revision, prompt, with_captions, batch)
