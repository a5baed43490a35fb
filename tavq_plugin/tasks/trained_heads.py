"""The alignment's heads of a finished run, loaded from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tavq_plugin.evaluation.sources.finished_runs import FinishedRun
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.state_tree import load_tree
from tavq_plugin.losses.alignment_settings import AlignmentSettings
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.methods import method_class
from tavq_plugin.methods.base import drawn_from
from tavq_plugin.methods.tavq import TAVQ
from tavq_plugin.ot.solve import TransportSettings

OF_HEADS = ("level_weights", "projection", "hidden", "distribution", "samples", "contrast_on", "temperature")


def trained_heads(run: FinishedRun, tokenizer: Tokenizer) -> TextAlignment | None:
    """The heads that were trained with a run's tokenizer, on its device in eval mode; None for a run without any.

    Raises ValueError if the heads in the folder do not fit the run's settings.
    """
    cls = method_class(run.recipe.method)
    state = _state_of_heads(run)
    if not state or not issubclass(cls, TAVQ):
        return None
    last = max(name for name in state if name.startswith("project.0.") and name.endswith(".weight"))
    with drawn_from(0):  # these weights are replaced
        heads = cls.alignment(tokenizer, len(state[last]), **_settings_of_heads(run.recipe.options))
    try:
        heads.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"the alignment's heads in {run.folder} do not fit its settings.json ({error}): a file was changed or "
            "damaged; train the run again"
        ) from error
    return heads.to(next(tokenizer.parameters()).device).eval()


def _state_of_heads(run: FinishedRun) -> dict[str, Tensor]:
    """What the folder holds of the heads: in method.safetensors, or in tavq.safetensors for a run of the demo."""
    method = run.folder / "method.safetensors"
    tree = load_tree(method) if method.is_file() else load_file(run.folder / "tavq.safetensors")
    state = {name.removeprefix("align."): value for name, value in tree.items() if name.startswith("align.")}
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _settings_of_heads(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `TextAlignment`, from the options of the method `tavq` or one of its controls."""
    default = AlignmentSettings()
    solver, epsilon = (options.get(name, getattr(default.transport, name)) for name in ("solver", "epsilon"))
    given = {name: options[name] for name in OF_HEADS if name in options}
    levels = options.get("granularities", default.levels)
    transport, contrast = TransportSettings(solver=solver, epsilon=epsilon), options.get("contrast")
    settings = AlignmentSettings(levels=levels, transport=transport, balance=None, contrast=contrast, **given)
    return settings.head_settings()
