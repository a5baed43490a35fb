"""Every docstring runs, by import name, and what pages name exists; their blocks: test_docs_blocks.py."""

import doctest
import importlib
import pkgutil
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import tavq_plugin.adapters
from helpers.page_blocks import PAGES, ROOT, blocks_of, commands_of, name_of
from helpers.page_commands import parse_tavq
from helpers.plain_training import Plain, attached, one_step

import tavq_plugin
from tavq_plugin.evaluation.sources.read_sources import read_sources, refuse_images

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


def test_the_first_two_shell_blocks_are_one_line_each():
    demo, tests = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[:2]
    assert demo.count("\n") == 1 and "tavq demo" in demo
    assert tests.count("\n") == 1 and "pytest" in tests


def evaluated_setups():
    """Pages that show a function which builds a host, and the `tavq evaluate` that measures it: page, code, words."""
    for page in PAGES:
        blocks = blocks_of(page.read_text(encoding="utf-8"))
        builders = [block.content for block in blocks if block.language == "python" and "def build" in block.content]
        scripts = [block.content for block in blocks if block.language in ("sh", "bash")]
        for words in (words for script in scripts for words in commands_of(script)):
            if builders and words[:2] == ["tavq", "evaluate"] and any(".py:build" in word for word in words):
                yield page, builders[-1], words[1:]


def test_a_page_says_how_to_evaluate_a_tokenizer_of_ones_own(tmp_path, monkeypatch):
    pytest.importorskip("taming")
    shown = list(evaluated_setups())
    assert shown
    for number, (page, code, words) in enumerate(shown):
        asked = parse_tavq(words)
        assert asked["split"] in ("tune", "test"), page
        (own,) = [source for source in asked["sources"] if ".py:build" in source]
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        Path(own.partition("=")[2].partition(":")[0]).write_text(code)
        (source,) = read_sources([own])
        assert source.name == own.partition("=")[0]
        refuse_images(source, asked["resolution"] or 64)


# of today's names: the others tell what was
TODAY = [page for page in PAGES if page.name not in ("CHANGELOG.md", "migration.md")]
FOLDERS = "tavq_plugin|adapters|tests|benchmarks|examples|docs"


@pytest.mark.parametrize("page", [*TODAY, ROOT / "docs/migration.md"], ids=name_of)
def test_the_files_that_a_page_names_exist(page):
    """But for files of another project, as in: diffusers' `examples/…`."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    named = re.findall(rf"(?<!' )`((?:{FOLDERS})/[\w./-]+)`", text)
    assert [link for link in links if not page.parent.joinpath(link).exists()] == []
    assert [path for path in named if not (ROOT / path).exists()] == []


def python_paths(page):
    """Dotted paths into the package that a page names as code."""
    text = page.read_text(encoding="utf-8").replace("tavq_plugin.adapters.name:Class", "")
    return set(re.findall(r"`(tavq_plugin(?:\.\w+)+)`", text))


@pytest.mark.parametrize("page", [page for page in TODAY if python_paths(page)], ids=name_of)
def test_the_python_paths_that_a_page_names_exist(page):
    assert [path for path in python_paths(page) if pkgutil.resolve_name(path) is None] == []


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
