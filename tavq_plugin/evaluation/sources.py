"""What `tavq evaluate` measures: tokenizers of a user's own code, and finished runs of our commands."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tavq_plugin.attach import Attachment, attachment_of
from tavq_plugin.distributed import unwrap
from tavq_plugin.hosts.tokenizer import Tokenizer, wrap
from tavq_plugin.hosts.user_setup import load_setup
from tavq_plugin.io.atomic import read_json
from tavq_plugin.io.file_hash import sha256_of
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.moved import current_settings
from tavq_plugin.pixels import to_float, to_uint8
from tavq_plugin.side_effects import eval_without_trace, isolated_random_state
from tavq_plugin.training.build import build_tokenizer
from tavq_plugin.training.build_host import refuse_targets
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.recipe_yaml import read_recipe, recipe_of
from tavq_plugin.training.run_folder import finished_summary, load_weights

SPEED: tuple[str, ...] = ("seconds_per_step", "plugin_share")
NAME = r"\w[\w.+-]*"  # names become folders
COMPARISON = ("compare.json", "shared.json")  # a folder with one of these is a comparison's
DEMO = {"lambda-0": "vqgan", "tavq": "tavq", "shuffled": "tavq-shuffled"}  # run of `tavq demo` → its method


class Loaded(NamedTuple):
    """A tokenizer that can be evaluated."""

    tokenizer: Tokenizer
    align: TextAlignment | None  # the heads that were trained with the tokenizer, if they are at hand
    own_levels: bool  # whether levels 1-2 were trained with the host; if not, `wrap` added them for the evaluation


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


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of `tavq train`, `compare` or `demo`."""

    name: str
    seed: int
    folder: Path
    recipe: Recipe
    trained_on: Mapping[str, Any] | None  # fingerprint of its corpus; None where it has none
    corpus_folder: Path | None  # the corpus that its command prepared, if it is there
    speed: Mapping[str, float] = field(default_factory=dict)  # seconds_per_step, plugin_share
    allow: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Where the run is, for messages."""
        return str(self.folder)

    def load(self) -> Loaded:
        """The trained tokenizer, on a GPU if there is one. Raises ValueError if its weights do not fit its settings."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with isolated_random_state(torch.device("cpu")):
            tokenizer = build_tokenizer(self.recipe, allow=self.allow)
        try:
            load_weights(self.folder, tokenizer, None)
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"the weights in {self.folder} do not fit the host in its settings.json ({error}): a file was changed "
                "or damaged; train the run again"
            ) from error
        return Loaded(tokenizer.to(device).eval(), None, own_levels=True)

    def settings(self, images: Tensor) -> dict[str, Any]:
        """What its results depend on: its recipe and the hashes of its weights; the images are not read."""
        hashes = {name: sha256_of(self.folder / name) for name in ("host.safetensors", "tavq.safetensors")}
        return {"host": self.recipe.host.target, **hashes}


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
            sources += _runs_in(Path(where), name, allow=tuple(allow))
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


# ---- a user's own code


def _user_tokenizer(target: str, name: str | None, *, allow: Sequence[str]) -> UserTokenizer:
    """What a target gives, wrapped if it is a plain host."""
    if ":" not in target and not target.endswith((".yaml", ".yml")):
        raise FileNotFoundError(
            f"no folder {target}, and it is no file.py:function, package.module:function or YAML file: correct it"
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
            made = tokenizer.decode(tokenizer.encode(images))
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


# ---- folders of our commands


def _runs_in(folder: Path, name: str | None, *, allow: tuple[str, ...]) -> list[FinishedRun]:
    """The run in a folder, or all finished runs of a comparison or a demo."""
    if (folder / "settings.json").exists():
        return [_run(folder, name, allow=allow)]
    if any((folder / file).exists() for file in COMPARISON):
        methods = list((read_json(folder / "compare.json", strict=False) or {}).get("methods", {}))
        order = {method: place for place, method in enumerate(methods)}  # that of the comparison's own table
        found = sorted(folder.glob("*/seed*/settings.json"))
        children = sorted(found, key=lambda file: order.get(file.parent.parent.name, len(order)))
    elif (folder / "demo.json").exists():
        children = [folder / run / "settings.json" for run in DEMO if (folder / run / "settings.json").exists()]
    else:
        raise ValueError(
            f"{folder} is no run: it has neither settings.json (tavq train) nor {' or '.join(COMPARISON)} (tavq "
            "compare) nor demo.json (tavq demo); give the folder that was --out"
        )
    if name is not None:
        raise ValueError(f"{name}={folder}: its runs have names of their own; leave {name}= out, or name one run")
    finished = [child.parent for child in children if _is_finished(child.parent)]
    if not finished:
        raise ValueError(f"{folder} has no finished run: give the command that made it again, and it resumes")
    return [_run(run, None, allow=allow) for run in finished]


def unfinished_runs(folder: Path) -> list[Path]:
    """The runs of a comparison that began and did not finish; none for any other folder."""
    return [file.parent for file in sorted(folder.glob("*/seed*/settings.json")) if not _is_finished(file.parent)]


def _is_finished(folder: Path) -> bool:
    return (folder / "history.json").exists() or (folder / "metrics.json").exists()


def _run(folder: Path, name: str | None, *, allow: tuple[str, ...]) -> FinishedRun:
    """A finished run of one folder; ValueError if it is none."""
    settings = current_settings(read_json(folder / "settings.json"))
    if not isinstance(settings, Mapping):
        raise ValueError(f"{folder}/settings.json holds no settings: give the folder of a run")
    if not _is_finished(folder):
        raise ValueError(f"{folder} is not finished: give the command that made it again, and it resumes")
    absent = [file for file in ("host.safetensors", "tavq.safetensors") if not (folder / file).is_file()]
    if absent:
        raise FileNotFoundError(f"{folder} has no {absent[0]}: train the run again")
    if settings.keys() >= {"method", "host", "corpus"}:
        return _trained_run(folder, name, settings, allow)
    if settings.keys() >= {"run", "seed", "steps", "resolution"} and settings["run"] in DEMO:
        return _demo_run(folder, name, settings)
    raise ValueError(f"{folder}/settings.json is of no command of tavq: give the folder of a run")


def _trained_run(folder: Path, name: str | None, settings: Mapping[str, Any], allow: tuple[str, ...]) -> FinishedRun:
    try:
        recipe = recipe_of({key: value for key, value in settings.items() if key != "corpus"})
        refuse_targets(recipe, allow=allow)
    except ValueError as error:
        raise ValueError(f"{folder}/settings.json: {error}") from error
    summary = finished_summary(folder) or {}
    speed = {key: float(summary[key]) for key in SPEED if key in summary}
    corpora = [place / "data" for place in (folder, folder.parent.parent) if (place / "data" / "corpus.json").exists()]
    corpus = corpora[0] if corpora else None
    return FinishedRun(name or recipe.method, recipe.seed, folder, recipe, settings["corpus"], corpus, speed, allow)


def _demo_run(folder: Path, name: str | None, settings: Mapping[str, Any]) -> FinishedRun:
    """A run of the demo; its host and levels are those of `tavq_plugin.cli.demo.demo_recipe`."""
    resolution, seed = settings["resolution"], settings["seed"]
    changed = [f"resolution={resolution}", f"seed={seed}", f"method={DEMO[settings['run']]}"]
    changed += ["host.wrap.detach_added_levels=false", f"host.wrap.max_grid={max(16, resolution // 2)}"]
    metrics = read_json(folder / "metrics.json")
    speed = {key: float(metrics[key]) for key in SPEED}
    return FinishedRun(name or settings["run"], seed, folder, read_recipe("small", changed), None, None, speed)
