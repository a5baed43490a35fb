"""Run a host on images of noise: at a resolution and in a mode that work, and with what its quantizer's call shows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from tavq_plugin.distributed import gather_sharded, is_sharded
from tavq_plugin.hosts.call_sites import hook_calls, split_number
from tavq_plugin.hosts.hooks import Capture, bare_paths, tapped
from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.types import Quantized

Found = TypeVar("Found")
SIDES = (64, 32, 128, 224, 256)  # pixels, tried in this order on a host that nothing is known of


class HostError(Exception):
    """The host itself raised; `__cause__` is its error."""


class HostReading(NamedTuple):
    """What one run of a host on noise showed."""

    images: Tensor  # b c h w
    features: list[Tensor]  # of the taps, fine → coarse, b c h w
    seen: dict[str, Capture]  # path → its call, in the order of the calls
    z_in: Any  # the quantizer's input
    final: Quantized
    table: Tensor | None  # the codebook, k c, after the run
    former_table: Tensor | None  # and before it, as an EMA moves it in a forward pass
    training: bool  # whether the host was in training mode

    @property
    def latent(self) -> Any:
        """What was quantized, b c h w."""
        return self.z_in if getattr(self.final, "latent", None) is None else self.final.latent


def noise(like: Tensor, images: int | None = None) -> Tensor:
    """Always the same uniform noise, of the shape and range of `like`; from 0 to 1 if `like` is constant.

    >>> noise(torch.zeros(1, 3, 4, 4), images=2).shape
    torch.Size([2, 3, 4, 4])
    """
    low, high = float(like.min()), float(like.max())
    low, high = (low, high) if high > low else (0.0, 1.0)
    drawn = torch.rand(images or len(like), *like.shape[1:], generator=torch.Generator().manual_seed(0))
    return (low + (high - low) * drawn).to(like)


def find_working(
    model: nn.Module, sizes: Sequence[Tensor], use: Callable[[Tensor], Found], *, other_sides: bool
) -> Found:
    """What `use` returns on the first images that the host takes, in eval mode, else in training mode.

    Args:
        model: The host; it stays in the mode that works.
        sizes: Images of the sizes to be tried; their values do not matter.
        use: Runs the host on images. What the host itself raises must come as `HostError`.
        other_sides: If true, the sides that the host names in its first error are tried too, then `SIDES`.

    Raises the host's own first error, with a note, if nothing works.
    """
    first: BaseException | None = None
    tried: list[torch.Size] = []
    waiting = list(sizes)
    while waiting:
        like = waiting.pop(0)
        if like.shape in tried:
            continue
        tried.append(like.shape)
        for training in (False, True):
            model.train(training)
            try:
                return use(noise(like))
            except HostError as error:
                if first is None:
                    first = error.__cause__
                    if other_sides:
                        waiting += [s.new_zeros(*s.shape[:2], n, n) for n in _sides_in(str(first)) for s in sizes]
    assert first is not None  # `sizes` is never empty
    first.add_note("this came from a dry run of the host: give example=, a batch of images it accepts, b c h w")
    raise first


def _sides_in(message: str) -> list[int]:
    """Sides of images that an error may mean, those it names first."""
    named = [int(number) for number in re.findall(r"(?<![\w.])\d{2,4}(?![\w.])", message)]
    return list(dict.fromkeys([*(n for n in named if 16 <= n <= 1024), *SIDES]))


def run_host(call: Callable[[Tensor], Any], images: Tensor) -> Any:
    """Call the host; whatever it raises becomes the cause of a `HostError`."""
    try:
        return call(images)
    except Exception as error:
        raise HostError from error


def read_host(adapter: Adapter, images: Tensor) -> HostReading:
    """Run the host through its quantizer, in the mode it is in, and read the calls.

    Raises HostError for the host's own error; ValueError if a tap or the quantizer did not run, or ran several times.
    """
    paths = tuple(dict.fromkeys((*adapter.taps, adapter.quantizer)))
    with torch.enable_grad():
        former = gather_sharded(adapter.codebook())
    former = None if former is None else former.detach().clone()
    with tapped(adapter.model, at=paths) as recorder, count_calls(adapter.model, paths) as calls:
        # a sharded host gathers its parameters only in its own forward
        run_host(whole_run(adapter) if is_sharded(adapter.model) else adapter.encode, images)
    require_one_call(adapter.quantizer, calls)
    try:
        seen = recorder.take()
    except RuntimeError as error:
        raise ValueError(f"{error}{_several_calls(paths, calls)}") from error
    features = [adapter.tokens(seen[path].output, level) for level, path in enumerate(adapter.taps)]
    call = seen[adapter.quantizer]
    final = parsed(adapter.parse, call.z_in, call.output)
    with torch.enable_grad():
        table = gather_sharded(adapter.codebook())
    return HostReading(images, features, seen, call.z_in, final, table, former, adapter.model.training)


def whole_run(adapter: Adapter) -> Callable[..., Any]:
    """Runs the whole host: the user's forward=, else the host itself."""
    return getattr(adapter, "given_forward", None) or adapter.model


@contextmanager
def count_calls(model: nn.Module, paths: Sequence[str]) -> Iterator[Counter[str]]:
    """How often each path is called inside the block, by its path without a number."""
    calls: Counter[str] = Counter()
    with ExitStack() as stack:
        for path in bare_paths(paths):
            handle = hook_calls(model, path, lambda *_, path=path: calls.update([path]))
            stack.callback(handle.remove)
        yield calls


def require_one_call(path: str, calls: Counter[str]) -> None:
    """Raise ValueError if a quantizer runs several times in a forward pass, and its path does not say which counts."""
    if calls[path] > 1:
        raise ValueError(
            f"the quantizer {path!r} runs {calls[path]} times in one forward pass of the host, and which call gives "
            f'the codes is not guessed: name it by its number from 1, such as quantizer="{path}#1"; or let the host '
            "call it once, on all its inputs in one batch"
        )


def _several_calls(paths: Sequence[str], calls: Counter[str]) -> str:
    """Which paths run several times, for an error."""
    several = {path: count for path in paths if (count := calls[split_number(path)[0]]) > 1}
    if not several:
        return ""
    named = ", ".join(f"{path!r} {count} times" for path, count in several.items())
    first = split_number(next(iter(several)))[0]
    return f". In one forward pass the host runs {named}: name one of the calls, such as {first}#1"


def parsed(parse: Callable[..., Quantized], z_in: Any, output: Any) -> Quantized:
    """What `parse` reads; an error of its own gets a note on what it was given."""
    try:
        return parse(z_in, output)
    except Exception as error:
        error.add_note(f"parse was given the quantizer's input, {describe(z_in)}, and its output, {describe(output)}")
        raise


def describe(value: Any) -> str:
    """The kind and the shapes of a value, for an error.

    >>> describe((torch.zeros(1, 2), None))
    '(float32 1 2, None)'
    """
    if isinstance(value, Tensor):
        return " ".join([str(value.dtype).removeprefix("torch."), *map(str, value.shape)])
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {describe(part)}" for key, part in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(describe, value)) + ")"
    return "None" if value is None else type(value).__name__
