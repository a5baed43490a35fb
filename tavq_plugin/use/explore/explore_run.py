"""From a run's folder to its page: what `tavq explore` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.evaluation.sources.finished_runs import FinishedRun, runs_in
from tavq_plugin.io.atomic import save_text
from tavq_plugin.io.ownership import claim
from tavq_plugin.text.encoder import TextEncoder, offline_encoder
from tavq_plugin.use.explore.page_data import page_content
from tavq_plugin.use.explore.page_images import PageImages, read_page_images
from tavq_plugin.use.explore.page_tables import TABLES, save_tables
from tavq_plugin.use.explore.run_codes import ExploredRun, Progress, load_explored
from tavq_plugin.use.explore.write_page import page_html

MAKER = "tavq explore"
PAGE = "index.html"


@dataclass(frozen=True)
class Explored:
    """A page, and what it was made of."""

    content: dict[str, Any]
    run: ExploredRun
    images: PageImages
    written: Sequence[Path]


def explore_run(
    folder: Path,
    *,
    out: Path,
    data: Path | None = None,
    images: int = 64,
    also: Sequence[Path] = (),
    parquet: bool = False,
    read: ReadSettings | None = None,
    allow: Sequence[str] = (),
    encoder: Callable[[], TextEncoder] = offline_encoder,
    progress: Progress = lambda name, done, total: None,
) -> Explored:
    """Write the page of a finished run into `out`; the run stays as it was.

    Args:
        folder: The folder of one run of `tavq train`, `compare` or `demo`.
        out: Folder of the page.
        data: Images with texts, of which the tune split is shown. Default: the run's own corpus if it is in its folder,
            else drawn scenes that no run of ours was trained on.
        images: Images that the page shows, at most.
        also: Folders of further runs, of the same resolution, such as other seeds.
        parquet: If true, also write the codes and the units as Parquet files.
        read: How the data are read.
        allow: Further packages that a recipe may name.
        encoder: Gives the text encoder that the run was trained with.
        progress: Called with the name of what is in work, the number done and the number of all.

    Raises:
        ValueError: The folder holds no finished run, or several, or the runs do not go together, or the data have too
            few images or no text.
        FileNotFoundError: A folder or file is missing.
        FileExistsError: A file that we did not write is in the way.
    """
    if images < 1:
        raise ValueError(f"--images {images}: give at least 1")
    finished = [_one_run(place, allow) for place in (folder, *also)]
    claim(out, (PAGE, *TABLES), MAKER)
    runs = [load_explored(run) for run in finished]
    needed = encoder if runs[0].align is not None else None
    read_images = read_page_images(finished[0], data, shown=images, encoder=needed, read=read)
    content = page_content(runs[0], read_images, also=runs[1:], progress=progress, version=version("tavq-plugin"))
    save_text(out / PAGE, page_html(content))
    written = [out / PAGE, *(save_tables(content, out) if parquet else [])]
    return Explored(content, runs[0], read_images, written)


def _one_run(folder: Path, allow: Sequence[str]) -> FinishedRun:
    """The run of a folder. ValueError if it holds several."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: give the folder of a finished run of tavq train, compare or demo")
    found = runs_in(folder, None, allow=tuple(allow))
    if len(found) > 1:
        names = ", ".join(str(run.folder) for run in found[:6])
        raise ValueError(f"{folder} holds {len(found)} runs, and a page is of one: give one of {names}")
    return found[0]
