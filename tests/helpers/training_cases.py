"""What each of two processes trains; results sent back to the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.toy_corpus import corpus, recipe, registered, stopped, weights

from tavq_plugin.training import fit


def trained(folder: str, method: str, changes: dict[str, Any], stop: int = 0) -> tuple[list, dict]:
    """A run by both ranks, interrupted once where asked; its history and weights."""
    with registered():
        if stop:
            stopped(method, recipe(**changes), Path(folder), after=stop)
        fitted = fit(method, recipe(**changes), corpus(), Path(folder))
        return fitted.history, {name: value.detach().clone() for name, value in weights(fitted).items()}


def broken(folder: str) -> str:
    """What is said where a term breaks."""
    with registered():
        try:
            fit("noisy", recipe(options={"broken_at": 1}), corpus(), Path(folder))
        except FloatingPointError as error:
            return str(error)
    return "nothing"


def refused(folder: str) -> str:
    """What is said where the batch does not divide."""
    try:
        fit("vqgan", recipe(batch_size=3), corpus(), Path(folder))
    except ValueError as error:
        return str(error)
    return "nothing"


def sharded(folder: str, method: str, changes: dict[str, Any], stop: int = 0) -> tuple[list, dict]:
    """The same, the module sharded by FSDP2 as accelerate does on GPUs."""
    from accelerate import Accelerator
    from torch.distributed.fsdp import fully_shard

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "prepare", lambda self, module: fully_shard(module))
        return trained(folder, method, changes, stop)


def unreachable(folder: str) -> str:
    """What is said where the adaptive weight finds its layer sharded."""
    try:
        sharded(folder, "vqgan", {"adversarial": {"start": 1}})
    except ValueError as error:
        return str(error)
    return "nothing"
