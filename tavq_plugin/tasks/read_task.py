"""From the options of `tavq task` to a plan: the tasks, the runs, and drawn scenes or a folder's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.evaluation.report.tasks_slot import has_page
from tavq_plugin.evaluation.sources.finished_runs import unfinished_runs
from tavq_plugin.evaluation.sources.read_sources import FinishedRun, Source, read_sources
from tavq_plugin.tasks.folder_data import folder_data
from tavq_plugin.tasks.run_tasks import Reporting, TaskPlan
from tavq_plugin.tasks.task import Task
from tavq_plugin.tasks.task_data import TaskData, drawn_data
from tavq_plugin.tasks.task_registry import task_names, task_of

RESOLUTION = 32  # pixels, where no run says
IMAGES = {False: (3000, 400), True: (300, 60)}  # quick → training and held-out images, at most


def read_task(
    names: Sequence[str],
    given: Sequence[str],
    *,
    out: Path,
    data: Path | None = None,
    n_train: int | None = None,
    n_eval: int | None = None,
    resolution: int | None = None,
    quick: bool = False,
    allow: Sequence[str] = (),
    tasks: Mapping[str, Task] | None = None,
    reporting: Reporting | None = None,
    read: ReadSettings | None = None,
    **settings: Any,
) -> TaskPlan:
    """The plan of these tasks on these runs; nothing is written.

    Args:
        names: Names of tasks, or "all".
        given: The runs, as `read_sources` takes them.
        out: Folder of the results.
        data: Folder of images with text. Default: drawn scenes.
        n_train: Training images, at most. Default: 3000, or 300 if quick.
        n_eval: Held-out images, at most. Default: 400, or 60 if quick.
        resolution: Pixels per side. Default: that of the runs, else 32.
        quick: If true, few steps and images.
        allow: Further packages that a run's recipe or a YAML file may name.
        tasks: The tasks by name. Default: those of the registry with these names.
        reporting: Who is told what happens. Default: nobody.
        read: The fields of the data with id and text. Default: those that are understood.
        settings: The other fields of `TaskPlan`.

    Raises:
        ValueError: A task, a run or a setting is unknown, or the data serve no task.
        FileNotFoundError: There is no such run or folder.
        ImportError: A task needs a package that is not installed.
    """
    reporting = reporting or Reporting()
    chosen = {name: task_of(name) for name in task_names(names)} if tasks is None else tasks
    sources = read_sources(given, allow=allow)
    for place in filter(Path.is_dir, map(Path, given)):
        for run in unfinished_runs(place):
            reporting.tell(f"{run} is not finished: left out")
    side, sizes = resolution or _resolution_of(sources), IMAGES[quick]
    images = _data(data, side, n_train or sizes[0], n_eval or sizes[1], reporting, read)
    pages = [Path(place) for place in given if has_page(Path(place))]
    return TaskPlan(chosen, sources, images, out, quick=quick, comparisons=pages, **settings)


def _data(
    data: Path | None, resolution: int, n_train: int, n_eval: int, reporting: Reporting, read: ReadSettings | None
) -> TaskData:
    if data is None:
        return drawn_data(resolution=resolution, n_train=n_train, n_eval=n_eval)
    return folder_data(
        data,
        resolution=resolution,
        n_train=n_train,
        n_eval=n_eval,
        settings=read,
        tell=reporting.tell,
        progress=lambda done, total: reporting.progress("reading images", done, total),
    )


def _resolution_of(sources: Sequence[Source]) -> int:
    """That of the first finished run, else 32; the plan refuses runs of another one."""
    return next((source.recipe.resolution for source in sources if isinstance(source, FinishedRun)), RESOLUTION)
