"""The section of a comparison's page that holds the results of `tavq task`."""

from types import SimpleNamespace

import pytest
import torch
from helpers.comparison_content import comparison_content
from helpers.counting_task import Counting
from helpers.tiny_hosts import tiny

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.evaluation.report.tasks_slot import has_page, place_tasks
from tavq_plugin.evaluation.report.write import write_report
from tavq_plugin.evaluation.sources.finished_runs import Loaded
from tavq_plugin.evaluation.sources.read_sources import UserTokenizer
from tavq_plugin.hosts.tokenizer import wrap
from tavq_plugin.io.ownership import claim
from tavq_plugin.tasks.run_tasks import TaskPlan, run_tasks
from tavq_plugin.tasks.task_data import drawn_data

pytest.importorskip("taming")
pytest.importorskip("jinja2")


@pytest.fixture
def comparison(tmp_path):
    folder = tmp_path / "comparison"
    claim(folder, ("compare.md", "compare.html"), "tavq compare")
    write(folder)
    return folder


def write(folder):
    targets = SimpleNamespace(corpus=Corpus("pack", torch.zeros(7, 3, 8, 8, dtype=torch.uint8), [""] * 7, None, 3))
    write_report(comparison_content(methods=2), {}, targets, folder)
    return (folder / "compare.html").read_text()


def test_results_of_tasks_become_a_section_that_the_next_page_keeps(comparison, tmp_path):
    before = (comparison / "compare.html").read_text()
    source = UserTokenizer("plain", "plain.py:build", Loaded(wrap(tiny("taming-vq"), log_summary=False), None, True))
    data = drawn_data(resolution=16, n_train=6, n_eval=5)
    plan = TaskPlan({"counting": Counting()}, [source], data, tmp_path / "out", comparisons=[comparison])
    run_tasks(plan, encoder=SimpleNamespace(fingerprint="letters"))
    page = (comparison / "compare.html").read_text()
    assert page.count('<h2 id="tasks">') == 1 and "counting" in page and "counting" not in before
    run_tasks(plan, encoder=SimpleNamespace(fingerprint="letters"))
    assert (comparison / "compare.html").read_text() == page  # it replaces the section before
    assert write(comparison) == page


def test_only_a_page_of_ours_has_a_place_for_them(comparison, tmp_path):
    assert has_page(comparison) and not has_page(tmp_path)
    (tmp_path / "compare.html").write_text("<!-- tasks --><!-- end of tasks -->")
    assert not has_page(tmp_path)  # nobody says that we wrote it
    (comparison / "tasks-section.html").write_text("somebody's notes")
    before = (comparison / "compare.html").read_text()
    with pytest.raises(FileExistsError, match="tasks-section.html is in the way"):
        place_tasks(comparison, "<section></section>")
    assert (comparison / "compare.html").read_text() == before == write(comparison)
