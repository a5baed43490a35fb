"""The tasks by name; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tavq_plugin.tasks.task import Task

_HERE = "tavq_plugin.tasks"
TASKS = {
    "unconditional": f"{_HERE}.unconditional:Unconditional",
    "semantic-synthesis": f"{_HERE}.semantic_synthesis:SemanticSynthesis",
    "text-to-image": f"{_HERE}.text_to_image:TextToImage",
    "completion": f"{_HERE}.completion:Completion",
    "grounding": f"{_HERE}.grounding:Grounding",
    "captioning": f"{_HERE}.captioning:Captioning",
    "vqa": f"{_HERE}.vqa:Vqa",
}
ALL = "all"


def task_names(asked: Sequence[str]) -> list[str]:
    """The names of the tasks that are asked for, each once; "all" stands for every task.

    Raises ValueError for an unknown name, with the nearest known one.

    >>> task_names(["vqa", "vqa"]), len(task_names(["all"]))
    (['vqa'], 7)
    >>> task_names(["caption"])
    Traceback (most recent call last):
    ValueError: no task 'caption': did you mean captioning? There are unconditional, ..., vqa, and all
    """
    names: dict[str, None] = {}
    for name in asked:
        if name != ALL and name not in TASKS:
            near = get_close_matches(name, TASKS, 1)
            mend = f"did you mean {near[0]}? There are" if near else "give one of"
            raise ValueError(f"no task {name!r}: {mend} {', '.join(TASKS)}, and {ALL}")
        names |= dict.fromkeys(TASKS if name == ALL else [name])
    return list(names)


def task_of(name: str) -> Task:
    """The task of this name. Raises ImportError, with the fix, if a package that it needs is not installed."""
    module, cls = TASKS[name].split(":")
    try:
        return getattr(import_module(module), cls)()
    except ImportError as error:
        raise ImportError(f'task {name} needs a package ({error}): pip install "tavq-plugin[tasks]"') from error
