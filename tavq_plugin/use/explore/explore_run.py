"""From a run's folder to its page: what `tavq explore` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.io.atomic import save_text
from tavq_plugin.io.ownership import claim
from tavq_plugin.use.explore.page_data import page_content
from tavq_plugin.use.explore.page_images import read_page_images
from tavq_plugin.use.explore.page_tables import TABLES, save_tables
from tavq_plugin.use.explore.run_codes import Progress, explored
from tavq_plugin.use.explore.write_page import page_html
from tavq_plugin.use.run import Run, load

MAKER = "tavq explore"
PAGE = "index.html"


@dataclass(frozen=True)
class Explored:
    """A page, and what it was made of."""

    content: dict[str, Any]
    run: Run
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
    encoder: Any = None,
    device: str | None = None,
    progress: Progress = lambda name, done, total: None,
    tell: Callable[[str], None] = lambda message: None,
) -> Explored:
    """Write the page of a finished run into `out`; the run stays as it was.

    Args:
        folder: The folder of one run of `tavq train`, `compare` or `demo`, or of `tavq export`.
        out: Folder of the page.
        data: Images with texts, of which the tune split is shown. Default: those that the run was trained on.
        images: Images that the page shows, at most.
        also: Folders of further runs, of the same resolution, such as other seeds.
        parquet: If true, also write the codes and the units as Parquet files.
        read: How the data are read.
        allow: Further packages that a recipe may name.
        encoder: Encodes texts, as the one that the run was trained with. Default: the offline encoder.
        device: Where the tokenizer runs. Default: a GPU if there is one.
        progress: Called with the name of what is in work, the number done and the number of all.
        tell: Called with what a user should know, such as images that are left out.

    Raises:
        ValueError: The folder holds no finished run, or several, or the runs do not go together, or the data have too
            few images or no text.
        FileNotFoundError: A folder or file is missing.
        FileExistsError: A file that we did not write is in the way.
    """
    if images < 1:
        raise ValueError(f"--images {images}: give at least 1")
    runs = [load(place, encoder=encoder, device=device, allow=allow, tell=tell) for place in (folder, *also)]
    claim(out, (PAGE, *TABLES), MAKER)
    read_images = read_page_images(runs[0], data, shown=images, read=read)
    shown = [explored(run) for run in runs]
    content = page_content(shown[0], read_images, also=shown[1:], progress=progress, version=version("tavq-plugin"))
    save_text(out / PAGE, page_html(content))
    written = [out / PAGE, *(save_tables(content, out) if parquet else [])]
    return Explored(content, runs[0], written)
