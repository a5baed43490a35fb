"""Which captioner a command means: a model on this machine, or one on a server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tavq_plugin.preprocessing.caption_batches import Captioner
from tavq_plugin.preprocessing.local_captioner import LocalCaptioner, commit_of
from tavq_plugin.preprocessing.server_captioner import ServerCaptioner
from tavq_plugin.preprocessing.shard_captions import Captions

_HERE, _THERE = ("dtype", "device"), ("concurrency", "timeout", "retries")


def captioner_of(model: str, server: str | None, batch: int, **options: Any) -> tuple[Callable[[], Captioner], int]:
    """How each process loads it, and the images between two writes; options of the other kind are left out."""
    unused = _THERE if server is None else _HERE
    used = {name: value for name, value in options.items() if name not in unused}
    if server is None:
        return partial(LocalCaptioner, model, **used), batch
    return partial(ServerCaptioner, server, model, **used), max(batch, 2 * used["concurrency"])


def captions_of(
    model: str, server: str | None, batch: int, *, prompt: str | None, with_captions: bool, **options: Any
) -> Captions:
    """The same for `prepare`, with what is known of the model without loading it."""
    load, batch = captioner_of(model, server, batch, **options)
    if server is not None:
        load()  # says at once what is wrong with an address
    revision = options["revision"] if server is not None else commit_of(model, options["revision"])
    return Captions(load, model, revision, prompt, with_captions, batch)
