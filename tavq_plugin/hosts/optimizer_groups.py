"""What `attach` asks of an optimizer: no schedule before it, and states from before the plug-in load after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tavq_plugin.hosts.summary import logger


def refuse_scheduled(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if a learning-rate schedule was built on the optimizer: it would not know the added groups."""
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        raise ValueError(
            "tavq.attach adds parameter groups, and this optimizer already has a learning-rate schedule, which would "
            "not know them: call tavq.attach before you build the schedule"
        )


class LoadedGroups:
    """A hook of `Optimizer.load_state_dict`, so that a state saved without the plug-in loads with it.

    The plug-in's parameters then keep the state and settings that they have. A state that was saved with the plug-in
    loads as it is.
    """

    def __init__(self, added: Sequence[nn.Parameter]) -> None:
        self.added = {id(parameter) for parameter in added}

    def __call__(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        """The state with the plug-in's groups added; None if it has as many groups as the optimizer.

        Raises ValueError if the groups are neither those of the host alone nor those of the host and the plug-in.
        """
        own = [any(id(p) in self.added for p in group["params"]) for group in optimizer.param_groups]
        loaded: list[dict[str, Any]] = state["param_groups"]
        if len(loaded) == len(own):
            return None
        if len(loaded) != own.count(False):
            raise ValueError(
                f"tavq.attach added {own.count(True)} parameter groups to the optimizer's {own.count(False)}; the "
                f"state to load has {len(loaded)}. Load a state of the host alone or of both; for one that version "
                '0.1 saved, attach with alignment={"heads_rate": 1}'
            )
        present = optimizer.state_dict()
        first = 1 + max((number for group in loaded for number in group["params"]), default=-1)
        numbers: dict[int, int] = {}  # in the optimizer's own state → in the state to load
        groups, rest = [], iter(loaded)
        for is_added, group in zip(own, present["param_groups"], strict=True):
            if is_added:
                numbers |= {number: first + len(numbers) + i for i, number in enumerate(group["params"])}
                groups.append({**group, "params": [numbers[number] for number in group["params"]]})
            else:
                groups.append(next(rest))
        kept = {numbers[number]: value for number, value in present["state"].items() if number in numbers}
        logger.info("the loaded optimizer state is from before tavq.attach: the plug-in's parameters keep their own")
        return {**state, "state": {**state["state"], **kept}, "param_groups": groups}
