"""The runs of a host in `wrap`: its reading of images that it takes, with taps that are maps of the image, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from tavq_plugin.distributed import gather_sharded, is_sharded
from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.hosts.gradient_paths import observe_gradient, read_in_training, verify_gradient
from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.hosts.trial_run import HostError, HostReading, find_working, noise, read_host
from tavq_plugin.hosts.verify_decode import decode_problem, own_tokens_problem
from tavq_plugin.hosts.verify_reading import halves_swapped, position_problem, verify_latent, verify_rows_in_training
from tavq_plugin.types import GradTo


def read_working_images(adapter: Adapter) -> HostReading:
    def use(images: Tensor) -> HostReading:
        return _read_images(adapter, images)

    if isinstance(adapter, HostAdapter):
        return adapter.on_working_images(use)
    return find_working(adapter.model, [gather_sharded(adapter.example_images())], use, other_sides=False)


def with_maps_of_the_image(adapter: Adapter, reading: HostReading) -> HostReading:
    """The reading, with other taps where a dry run chose what is no map of the image; ValueError if there are none.

    What an adapter for this host says of taps is taken as it is, and a sharded host is not judged.
    """
    if is_sharded(adapter.model) or _taps_are_known(adapter):
        return reading
    while len(reading.images) == 2:
        halves = read_host(adapter, halves_swapped(reading.images)[2:]).features
        wrong = None
        for path, *pair in zip(adapter.taps, reading.features, halves, strict=True):
            wrong = wrong or position_problem(path, torch.cat(pair))
        if wrong is None:
            break
        if not isinstance(adapter, HostAdapter) or adapter.taps_given or not adapter.try_other_taps(wrong.path):
            raise ValueError(wrong.text)
        reading = read_working_images(adapter)
    return reading


def _read_images(adapter: Adapter, images: Tensor) -> HostReading:
    """The reading of these images if an adapter knows the host; else of two of this size, if the host takes two."""
    if _taps_are_known(adapter):
        return read_host(adapter, images)
    try:
        return read_host(adapter, noise(images, images=2))
    except HostError:
        return read_host(adapter, images)


def verify_training(
    adapter: Adapter, reading: HostReading, *, asked: GradTo | None, goes_to: GradTo, looks_up: bool
) -> None:
    """Run the host in training mode; raise ValueError if its gradient or its codes are not what they were taken for.

    A sharded host is not checked so, as its parameters are there only in its own forward, and its gradient is averaged.
    """
    if is_sharded(adapter.model):
        return
    known, images = _taps_are_known(adapter), reading.images[:1]
    paths = observe_gradient(adapter, images, taps=() if known else adapter.taps)
    verify_gradient(adapter, paths, asked, goes_to)
    verify_latent(reading, goes_to, straight_through=adapter.straight_through)
    if paths is not None and paths.training and looks_up:
        verify_rows_in_training(adapter, paths.reading, again=lambda: read_in_training(adapter, images))


def problem_of_own_tokens(adapter: Adapter, reading: HostReading) -> str:
    """What is wrong with the host's own way to tokens and back; nothing is compared where its eval mode fails."""
    nothing = reading.training or is_sharded(adapter.model)
    return "" if nothing else own_tokens_problem(adapter, reading.images[:1])


def problem_of_decode(adapter: Adapter, reading: HostReading) -> str:
    """Run the host again; what is wrong with its decode, or nothing.

    The decode of an adapter for this host is taken as it is, as each is tested; that keeps `wrap` quick.
    """
    if is_sharded(adapter.model):
        return ""
    known, training = _taps_are_known(adapter), reading.training
    own_decode = isinstance(adapter, HostAdapter) and type(adapter).decode is not HostAdapter.decode
    own_decode = own_decode and not _is_given(adapter, "decode")
    return "" if training or (known and own_decode) else decode_problem(adapter, reading.images[:1])


def _taps_are_known(adapter: Adapter) -> bool:
    """Whether an adapter for this host names the taps, rather than the user or a dry run."""
    if not isinstance(adapter, HostAdapter):
        return True
    return type(adapter).find_taps is not HostAdapter.find_taps and not (adapter.taps_given or adapter.reads_by_parse)


def _is_given(adapter: Adapter, name: str) -> bool:
    """Whether the user gave the function of this name."""
    return isinstance(adapter, HostAdapter) and name in adapter.settings
