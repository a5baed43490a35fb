"""An adapter imports no other adapter, and at its top nothing that a user of its host may lack."""

import ast
import sys
from pathlib import Path

import pytest

ADAPTERS = Path(__file__).parents[2] / "adapters"
ALLOWED = {"torch", "einops", *sys.stdlib_module_names}
OURS = {f"tavq_plugin.{name}" for name in ("distributed", "hosts", "pixels", "side_effects", "types")}


def imported(statements, *, everywhere):
    """Names of the modules that the statements import; if `everywhere`, also inside functions."""
    names = set()
    for statement in statements:
        for node in ast.walk(statement) if everywhere else _outside_functions(statement):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                names |= {base, *(f"{base}.{alias.name}" for alias in node.names)} if node.level else {base}
                if base == "tavq_plugin":
                    names |= {f"tavq_plugin.{alias.name}" for alias in node.names}
    return names


def _outside_functions(node):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _outside_functions(child)


def foreign(source):
    """Modules that the source imports when it is loaded, and that an adapter may not need."""
    names = imported(ast.parse(source).body, everywhere=False) - {"tavq_plugin"}
    ours = {name for name in names if any(name == room or name.startswith(f"{room}.") for room in OURS)}
    return {name for name in names - ours if name.split(".")[0] not in ALLOWED}


def others(source):
    """Adapters that the source imports, anywhere in it."""
    names = imported(ast.parse(source).body, everywhere=True)
    return {name for name in names if name.startswith((".", "adapters", "tavq_plugin.adapters"))}


@pytest.mark.parametrize("path", sorted(ADAPTERS.glob("*.py")), ids=lambda path: path.stem)
def test_an_adapter_stands_alone(path):
    source = path.read_text(encoding="utf-8")
    assert others(source) == set()
    assert foreign(source) == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import taming", {"taming"}),
        ("try:\n    from ldm.models import x\nexcept ImportError:\n    pass", {"ldm.models"}),
        ("class A:\n    import diffusers", {"diffusers"}),
        ("from tavq_plugin.losses import x", {"tavq_plugin.losses"}),
        ("from tavq_plugin import training", {"tavq_plugin.training"}),
        ("def f():\n    import taming", set()),
        ("import torch.nn\nfrom tavq_plugin.hosts.base import HostAdapter", set()),
    ],
)
def test_foreign_imports_are_found(source, found):
    assert foreign(source) == found


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    from tavq_plugin.adapters.taming import VQGAN",
        "from . import taming",
        "from .taming import VQGAN",
    ],
)
def test_imports_of_other_adapters_are_found(source):
    assert others(source)


@pytest.mark.parametrize(
    "path", sorted((ADAPTERS.parent / "tavq_plugin/hosts").glob("*.py")), ids=lambda path: path.stem
)
def test_hosts_name_adapters_only_in_strings(path):
    assert others(path.read_text(encoding="utf-8")) == set()
