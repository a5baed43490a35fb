"""What `tavq evaluate` measures: tokenizers of a user's own code, and finished runs of our commands."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tavq_plugin.attach import Attachment, attachment_of
from tavq_plugin.distributed import unwrap
from tavq_plugin.evaluation.sources.finished_runs import FinishedRun, Loaded, runs_in
from tavq_plugin.hosts.tokenizer import Tokenizer, wrap
from tavq_plugin.hosts.user_setup import load_setup
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.pixels import to_float, to_uint8
from tavq_plugin.side_effects import eval_without_trace

NAME = r"\w[\w.+-]*"  # names become folders


@dataclass(frozen=True, eq=False)
class UserTokenizer:
    """A tokenizer that the user's own code returned; a plain host is wrapped here, and stays as it was."""

    name: str
    target: str  # as the user gave it
    loaded: Loaded
    attachment: Attachment | None = None
    seed: int = 0

    @property
    def origin(self) -> str:
        """Where the tokenizer comes from, for messages."""
        return self.target

    def load(self) -> Loaded:
        """The tokenizer, its heads and whether its levels are its own."""
        return self.loaded

    def settings(self, images: Tensor) -> dict[str, Any]:
        """What its results depend on: a hash of its state and of what it makes of some images, n 3 h w uint8."""
        tokenizer, align, _ = self.loaded
        digest = hashlib.sha256(f"{type(tokenizer.host).__qualname__} {tokenizer.adapter.quantizer}".encode())
        for module in (tokenizer, *(() if align is None else (align,))):
            for name, value in sorted(module.state_dict().items()):
                digest.update(name.encode())
                if isinstance(value, Tensor):
                    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        with self.quiet():
            codes = tokenizer.encode(to_float(images.to(next(tokenizer.parameters()).device)))
            for level in codes.levels:
                digest.update(level.indices.cpu().numpy().tobytes())
            with suppress(NotImplementedError):  # a host without a decoder
                digest.update(to_uint8(tokenizer.decode(codes)).cpu().numpy().tobytes())
        return {"sha256": digest.hexdigest(), "own_levels": self.loaded.own_levels}

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Eval mode inside the block; at its end the user's modules and attachment are as before."""
        tokenizer, align, _ = self.loaded
        last = None if align is None else align.last
        recorder = None if self.attachment is None else self.attachment.recorder
        live = recorder is not None and recorder.live
        try:
            if recorder is not None:
                recorder.live = False
            with eval_without_trace(nn.ModuleList([tokenizer, *([] if align is None else [align])])):
                yield
        finally:
            if recorder is not None:
                recorder.live = live
            if align is not None and last is not None:
                align.last = last


Source = UserTokenizer | FinishedRun


def read_sources(given: Sequence[str], *, allow: Sequence[str] = ()) -> list[Source]:
    """The tokenizers and runs that the arguments of `tavq evaluate` name, in their order.

    Args:
        given: Each is "file.py:function", "module:function", a YAML file, a run's folder, or the folder of a comparison
            or a demo, which stands for all of its finished runs. "NAME=" before it names a tokenizer or a single run.
        allow: Further packages that a YAML file or a recipe may name.

    Raises:
        ValueError: An argument is none of these, a run is not finished, a host cannot be wrapped, or two runs have the
            same name and seed.
        FileNotFoundError: There is no such file or folder.
    """
    if not given:
        raise ValueError("nothing to evaluate: give setup.py:build, the folder of a run, or that of a comparison")
    sources: list[Source] = []
    for text in given:
        name, where = _split_name(text)
        if Path(where).is_dir():
            sources += runs_in(Path(where), name, allow=tuple(allow))
        else:
            sources.append(_user_tokenizer(where, name, allow=allow))
    seen: dict[tuple[str, int], str] = {}
    for source in sources:
        key = (source.name, source.seed)
        if key in seen:
            raise ValueError(
                f"{seen[key]} and {source.origin} are both {source.name}, seed {source.seed}: name one of them, as in "
                f"OTHER={source.origin}"
            )
        seen[key] = source.origin
    return sources


def _split_name(text: str) -> tuple[str | None, str]:
    """The name before the first "=", if there is one, and the rest."""
    name, equals, rest = text.partition("=")
    if equals and rest and re.fullmatch(NAME, name) and not Path(text).exists():
        return name, rest
    return None, text


def _user_tokenizer(target: str, name: str | None, *, allow: Sequence[str]) -> UserTokenizer:
    """What a target gives, wrapped if it is a plain host."""
    if ":" not in target and not target.endswith((".yaml", ".yml")):
        raise FileNotFoundError(
            f"{target} is neither a folder nor file.py:function, package.module:function or a YAML file: check it"
        )
    host, _, align = load_setup(target, allow=allow)
    stem = Path(target if target.endswith((".yaml", ".yml")) else target.rpartition(":")[0]).stem
    name = name or re.sub(r"[^\w.+-]", "-", stem).strip(".-+") or type(host).__name__
    align = attachment_of(host) if align is None and not isinstance(host, Tokenizer) else align
    if align is not None and not isinstance(align, Attachment | TextAlignment):
        raise ValueError(
            f"{target} returned a {type(align).__name__} as its third value: return what tavq.attach gave, or a "
            "TextAlignment, or leave it out"
        )
    if isinstance(align, Attachment):
        return UserTokenizer(name, target, _attached(target, host, align), align)
    if isinstance(host, Tokenizer):
        return UserTokenizer(name, target, Loaded(host, align, own_levels=True))
    if align is not None:
        raise ValueError(
            f"{target} returned a host and a TextAlignment, and the added levels that were trained with it are in "
            "neither: return the tokenizer of tavq.wrap in the host's place"
        )
    return UserTokenizer(name, target, Loaded(_wrapped(target, host), None, own_levels=False))


def _attached(target: str, host: nn.Module, attachment: Attachment) -> Loaded:
    """The tokenizer that an attachment trains: the host with the attachment's own levels."""
    bare = host.host if isinstance(host, Tokenizer) else unwrap(host)
    if attachment.adapter.model is not bare:
        raise ValueError(f"{target} returned a host and the attachment of another host: return those of one host")
    heads = attachment.alignment
    return Loaded(Tokenizer(attachment.adapter, attachment.hierarchy, heads.width, attachment.sizes), heads, True)


def _wrapped(target: str, host: nn.Module) -> Tokenizer:
    """A plain host, wrapped for the evaluation; the error of a host that cannot be wrapped names the target."""
    try:
        return wrap(unwrap(host), max_grid=16, log_summary=False)  # levels 1-2 are not shown, so they may be small
    except Exception as error:  # a dry run of the host may raise anything
        raise ValueError(
            f"{target}: {type(host).__name__} cannot be read as a VQ tokenizer ({type(error).__name__}: {error}). "
            "Fix: return tavq.wrap(host, ...) with its settings from the function; tavq doctor shows what is missing"
        ) from error


def refuse_images(source: UserTokenizer, resolution: int) -> None:
    """Raise ValueError if a tokenizer does not return images of the size that it is given, or returns no numbers."""
    tokenizer = source.loaded.tokenizer
    images = next(tokenizer.parameters()).new_zeros(1, 3, resolution, resolution)
    try:
        with source.quiet():
            codes = tokenizer.encode(images)
            try:
                made = tokenizer.decode(codes)
            except NotImplementedError:  # a host without a decoder: its codes are evaluated
                return
    except Exception as error:  # the host may raise anything
        raise ValueError(
            f"{source.target} cannot take images of {resolution} px ({type(error).__name__}: {error}): give the "
            "--resolution that the host was trained at"
        ) from error
    if made.shape != images.shape:
        raise ValueError(
            f"{source.target} returns {tuple(made.shape)} for images of {tuple(images.shape)}: give the --resolution "
            "that the host was trained at, which its strides divide"
        )


def refuse_text_width(source: Source, width: int) -> None:
    """Raise ValueError if a tokenizer's own heads give vectors of another width than the corpus' texts."""
    align = source.loaded.align if isinstance(source, UserTokenizer) else None
    if align is not None and align.text_dim != width:
        raise ValueError(
            f"{source.origin} returned an alignment of width {align.text_dim}, and the texts here are encoded with "
            f"width {width} (all-MiniLM-L6-v2): to evaluate its codes without its own heads, return (host, optimizer) "
            "after tavq.detach(host), or the tokenizer of tavq.wrap alone; or train with text_dim="
            f"{width}"
        )
