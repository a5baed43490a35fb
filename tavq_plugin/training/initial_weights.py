"""Find the state dict in a checkpoint that fits a host, and load it: all of the host's tensors, or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from tavq_plugin.io.convert_checkpoint import state_dicts
from tavq_plugin.io.storable import refuse_unstorable
from tavq_plugin.training.initial_checkpoint import read_weights

AVERAGED = ("ema", "ema_model", "model_ema")  # names of averaged copies (LlamaGen, ema-pytorch, LDM)
# first part of a tensor's name, or name of another state dict in the checkpoint → what it is, if the host lacks it
UNDERSTOOD = {
    **dict.fromkeys(AVERAGED, "averaged copy"),
    **dict.fromkeys(("loss", "loss_fn", "criterion"), "training loss"),
    **dict.fromkeys(("perceptual_loss", "lpips"), "perceptual loss"),
    **dict.fromkeys(("discriminator", "disc"), "discriminator"),
    **dict.fromkeys(("hierarchy", "method", "align"), "of an earlier run with the plug-in"),
}
SHOWN = 4  # names in a message


class InitialWeights(NamedTuple):
    """The weights of a host that a checkpoint holds."""

    state: dict[str, Tensor]  # by the host's own names; complete
    summary: str  # one line: what was found where, and what was left out


class _Place(NamedTuple):
    """A state dict of a checkpoint, and what stands before the host's names in it."""

    name: str  # path of the state dict in the checkpoint
    prefix: str  # "", or ends in a dot
    weights: Mapping[str, Tensor]

    @property
    def averaged(self) -> bool:
        return any(part in AVERAGED for part in f"{self.name}.{self.prefix}".split("."))

    def __str__(self) -> str:
        parts = [f"entry {self.name}"] if self.name else []
        parts += [f"below {self.prefix}*"] if self.prefix else []
        return ", ".join(parts) or "top level"


def load_initial_weights(host: nn.Module, init: str, *, allow: Sequence[str] = ()) -> str:
    """Load a checkpoint's weights into a host, all of its tensors or none; returns one line that says what was loaded.

    Raises as `initial_weights`; the host is then unchanged.
    """
    found = initial_weights(host, init, allow=allow)
    host.load_state_dict(found.state, strict=True)
    return found.summary


def initial_weights(host: nn.Module, init: str, *, allow: Sequence[str] = ()) -> InitialWeights:
    """The weights for a host in a checkpoint.

    The host's tensors may be in any state dict of the checkpoint, and their names may have a common prefix, such as
    `module.`. All must be there, of the same shapes, and finite. Of a model and its averaged copy, the model is taken.
    Names that the host lacks are left out if they are `UNDERSTOOD`.

    Args:
        host: Its state dict says what is needed.
        init: A file of safetensors or `torch.save`, or the folder of a finished run.
        allow: Further class names that a file of `torch.save` may hold; they are read as plain values.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: It does not fit the host, holds something that is not understood, or a weight is not finite.
    """
    needed = host.state_dict()
    refuse_unstorable(needed, "the host's state dict")
    content = read_weights(init, allow=allow)
    found = {name: _uncompiled(weights) for name, weights in state_dicts(content)}
    if not found:
        raise ValueError(f"{init} holds no state dict (a mapping from names to tensors): give a file with weights")
    place = _only_fitting(needed, list(_places(needed, found)), host, init)
    left_out = _left_out(needed, place, found, init)
    state = {name: place.weights[place.prefix + name] for name in needed}
    _refuse_not_finite(host, state, init)
    where = "" if str(place) == "top level" else f" ({place})"
    summary = f"{init}{where}: all {len(state)} tensors of {type(host).__name__} are loaded"
    if left_out:
        parts = ", ".join(
            f"{name} {number} ({UNDERSTOOD[name.partition('.')[0]]})" for name, number in left_out.items()
        )
        summary += f"; {sum(left_out.values())} others are left out: {parts}"
    return InitialWeights(state, summary)


def _uncompiled(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights by the names that they have without torch.compile."""
    return {name.replace("_orig_mod.", ""): value for name, value in weights.items()}


def _places(needed: Mapping[str, Tensor], found: Mapping[str, Mapping[str, Tensor]]) -> Iterator[_Place]:
    """Every state dict and prefix with at least one of the host's names; most names first."""
    counts: Counter[tuple[str, str]] = Counter()
    for name, weights in found.items():
        for key in weights:
            parts = key.split(".")
            for start in range(len(parts)):
                if ".".join(parts[start:]) in needed:
                    counts[name, "".join(f"{part}." for part in parts[:start])] += 1
    for (name, prefix), _ in counts.most_common():
        yield _Place(name, prefix, found[name])


def _only_fitting(needed: Mapping[str, Tensor], places: Sequence[_Place], host: nn.Module, init: str) -> _Place:
    """The one place that has all of the host's tensors; ValueError if there is none, or several."""
    fitting = [place for place in places if not _misfits(needed, place)]
    live = [place for place in fitting if not place.averaged] or fitting
    if len(live) == 1:
        return live[0]
    mend = "give host.target and host.params of the host that the checkpoint was trained with"
    kind = type(host).__name__
    if live:
        raise ValueError(
            f"{init} holds the weights of {kind} more than once ({'; '.join(map(str, live))}): write the one you mean "
            "to a file of its own, as tavq convert-checkpoint does with each entry"
        )
    if not places:
        raise ValueError(f"{init} holds none of the {len(needed)} tensors of {kind} ({_some(needed)}): {mend}")
    raise ValueError(f"{init} does not fit {kind}: {_misfits(needed, places[0])}; {mend}")


def _misfits(needed: Mapping[str, Tensor], place: _Place) -> str:
    """Which of the host's tensors are missing in a place, or are of another shape or kind; empty if all fit."""
    there = {name: place.weights.get(place.prefix + name) for name in needed}
    absent = [name for name, value in there.items() if value is None]
    unlike = [
        f"{name} is {_kind(value)} there and {_kind(needed[name])} in the host"
        for name, value in there.items()
        if value is not None and _kind(value) != _kind(needed[name])
    ]
    parts = [f"{len(absent)} of its {len(needed)} tensors are missing ({_some(absent)})"] if absent else []
    parts += [f"{len(unlike)} differ in shape ({_some(unlike)})"] if unlike else []
    return ", and ".join(parts)


def _kind(value: Tensor) -> str:
    """The shape, and whether the values are fractions; the precision may differ, as loading converts it."""
    return ("×".join(map(str, value.shape)) or "scalar") + ("" if value.is_floating_point() else f" of {value.dtype}")


def _left_out(
    needed: Mapping[str, Tensor], place: _Place, found: Mapping[str, Mapping[str, Tensor]], init: str
) -> dict[str, int]:
    """How many tensors are left out, by their group's name; ValueError for what is not understood."""
    groups: Counter[str] = Counter()
    strange = []
    ours = {place.prefix + name for name in needed}
    for key in place.weights:
        if key not in ours:
            first, *rest = _after_common_parts(place.prefix, key)
            groups[f"{first}.*" if rest else first] += 1
            strange += [] if first in UNDERSTOOD else [key]
    for name, weights in found.items():
        if name != place.name:
            first = _after_common_parts(f"{place.name}.", name)[0]
            groups[first] += len(weights)
            strange += [] if first in UNDERSTOOD else [f"{name}.{key}" for key in weights]
    if strange:
        raise ValueError(
            f"{init} holds {len(strange)} tensors that are neither of the host nor of a known training loss, "
            f"discriminator or averaged copy ({_some(strange)}): give host.target and host.params of the host that has "
            "them, or a file without them (tavq convert-checkpoint writes one file per entry)"
        )
    return dict(groups)


def _after_common_parts(prefix: str, key: str) -> list[str]:
    """The parts of a dotted name after those that it shares with a prefix; at least one.

    >>> _after_common_parts("model.vqgan.", "model.loss.weight")
    ['loss', 'weight']
    """
    parts = key.split(".")
    for part in prefix.split(".")[:-1]:
        if len(parts) < 2 or parts[0] != part:
            break
        parts = parts[1:]
    return parts


def _refuse_not_finite(host: nn.Module, state: Mapping[str, Tensor], init: str) -> None:
    """Raise ValueError if a parameter is not finite, or another tensor holds NaN (a mask may hold infinity)."""
    parameters = {name for name, _ in host.named_parameters(remove_duplicate=False)}
    broken = [
        name
        for name, value in state.items()
        if value.is_floating_point() and not (value.isfinite() if name in parameters else ~value.isnan()).all()
    ]
    if broken:
        raise ValueError(
            f"{len(broken)} tensors in {init} are not finite ({_some(broken)}): the training that wrote it broke; give "
            "an earlier checkpoint"
        )


def _some(names: Any) -> str:
    """The first few names."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (", …" if names[SHOWN:] else "")
