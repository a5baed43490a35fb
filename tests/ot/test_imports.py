"""The solver imports nothing else of the plug-in."""

import ast
from pathlib import Path

import pytest

import tavq_plugin.ot

FILES = sorted(Path(tavq_plugin.ot.__file__).parent.glob("**/*.py"))


def imported(file):
    """The modules that a file imports, anywhere in it; a relative import is written with its dots."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_solver_imports_nothing_else_of_the_plug_in(file):
    ours = [name for name in imported(file) if name.split(".")[0] in ("tavq_plugin", "")]
    assert all(name.startswith("tavq_plugin.ot.") for name in ours), ours


def test_files_and_imports_are_found():
    assert {"solve.py", "newton.py"} <= {file.name for file in FILES}
    assert "tavq_plugin.ot.value.EntropicValue" in imported(FILES[[file.name for file in FILES].index("solve.py")])
