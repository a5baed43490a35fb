"""The place in a comparison's page for the results of `tavq task` on its runs; a later page of it keeps them."""

from __future__ import annotations

from pathlib import Path

from tavq_plugin.io.atomic import save_text
from tavq_plugin.io.ownership import claim, claims

BEGIN, END = "<!-- tasks -->", "<!-- end of tasks -->"
PAGE, SECTION = "compare.html", "tasks-section.html"
MAKER = "tavq compare"  # of the page


def has_page(folder: Path) -> bool:
    """Whether a folder holds the page of a comparison of ours, with a place for tasks."""
    page = folder / PAGE
    return claims(folder).get(PAGE) == MAKER and page.is_file() and BEGIN in page.read_text(encoding="utf-8")


def place_tasks(folder: Path, section: str) -> Path:
    """Put a section of HTML into the page of the comparison in `folder`; returns the page's path.

    It replaces the one before, and is kept, so that the next page of the comparison has it too. Raises
    FileExistsError if a file that we did not write is in the way.
    """
    claim(folder, (SECTION,), MAKER)
    save_text(folder / SECTION, section)
    page = folder / PAGE
    save_text(page, with_tasks(page.read_text(encoding="utf-8"), folder))
    return page


def with_tasks(page: str, folder: Path) -> str:
    """A page with the section that is kept in `folder` in its place, if there is one."""
    kept = folder / SECTION
    if claims(folder).get(SECTION) != MAKER or not kept.is_file():
        return page
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{kept.read_text(encoding='utf-8')}{END}{after}"
