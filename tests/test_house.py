"""Rules of the house that no linter knows: rooms and floors, names, old paths, and tests that assert something."""

import ast
import configparser
import re
from collections import defaultdict
from pathlib import Path

import pytest
from helpers.page_blocks import PAGES, ROOT, name_of

from tavq_plugin.moved import MODULES

PACKAGE, ADAPTERS, TESTS = ROOT / "tavq_plugin", ROOT / "adapters", ROOT / "tests"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *ADAPTERS.rglob("*.py")])
OTHERS = [file for folder in ("tests", "benchmarks", "examples") for file in (ROOT / folder).rglob("*.py")]
EVERY_FILE = sorted([*SOURCES, *OTHERS])

# A file name that several modules may share, and why.
SHARED_FILE_NAMES: dict[str, str] = {
    "base.py": "the base class of its room: of host adapters in hosts, of methods in methods",
}
# A class name that several modules may share, and why.
SHARED_CLASS_NAMES: dict[str, str] = {"Grounding": "a task; and where a text lies in an image, by a run's plans"}


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


# ---- rooms and floors


def floors_in_setup_cfg() -> dict[str, int]:
    """Room → floor, counted from the lowest layer, which is 0."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    layers = config["importlinter:contract:floors"]["layers"].strip().splitlines()
    return {
        room.strip().removeprefix("tavq_plugin."): floor
        for floor, layer in enumerate(reversed(layers))
        for room in layer.split("|")
    }


def floors_in_contributing() -> dict[str, int]:
    """Room → floor, as the table in CONTRIBUTING.md says."""
    rows = re.findall(
        r"^\| `(\w+)(?:/|\.py)` \| (\d+) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M
    )
    return {room: int(floor) for room, floor in rows}


def rooms() -> set[str]:
    """Top-level packages and modules of tavq_plugin."""
    packages = {folder.parent.name for folder in PACKAGE.glob("*/__init__.py")}
    return packages | {file.stem for file in PACKAGE.glob("*.py") if not file.stem.startswith("__")}


def test_contributing_names_every_room_and_its_floor():
    assert floors_in_contributing() == floors_in_setup_cfg()


def test_every_room_exists_and_is_named():
    assert floors_in_contributing().keys() == rooms()


def test_setup_cfg_installs_every_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    installed = set(config["options"]["packages"].split())
    there = {".".join(file.parent.relative_to(ROOT).parts) for file in PACKAGE.rglob("__init__.py")}
    assert installed == there | {"tavq_plugin.adapters"}


# ---- names


def test_no_two_files_share_a_name():
    places = defaultdict(list)
    for file in SOURCES:
        if file.name not in ("__init__.py", "__main__.py"):
            places[file.name].append(str(file.relative_to(ROOT)))
    shared = {name: files for name, files in places.items() if len(files) > 1}
    assert {name: files for name, files in shared.items() if name not in SHARED_FILE_NAMES} == {}
    assert SHARED_FILE_NAMES.keys() <= shared.keys(), "a name in the list is no longer shared: take it out"


def test_no_two_public_classes_share_a_name():
    places = defaultdict(list)
    for file in SOURCES:
        for node in parse(file).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(file.relative_to(ROOT)))
    shared = {name: files for name, files in places.items() if len(files) > 1}
    assert {name: files for name, files in shared.items() if name not in SHARED_CLASS_NAMES} == {}
    assert SHARED_CLASS_NAMES.keys() <= shared.keys(), "a name in the list is no longer shared: take it out"


def test_no_file_is_called_utils():
    assert [file for file in EVERY_FILE if file.stem in ("util", "utils")] == []


# ---- old paths


def imported(tree: ast.Module) -> set[str]:
    """Every dotted path that a file imports, of a module or of a name in one."""
    paths = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            paths |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return paths


def test_nothing_imports_an_old_path():
    old = {f"tavq_plugin.{module}" for module in MODULES}
    exempt = {PACKAGE / "moved.py", TESTS / "test_moved.py"}
    found = {str(file.relative_to(ROOT)): imported(parse(file)) & old for file in EVERY_FILE if file not in exempt}
    assert {file: paths for file, paths in found.items() if paths} == {}


OF_TODAY = [page for page in PAGES if page.name not in ("migration.md", "CHANGELOG.md")]  # these speak of old paths


@pytest.mark.parametrize("page", OF_TODAY, ids=name_of)
def test_no_page_names_an_old_path(page):
    words = set(re.findall(r"tavq_plugin(?:[./]\w+)+", page.read_text(encoding="utf-8")))
    paths = {word.replace("/", ".").removesuffix(".py") for word in words}
    old = {f"tavq_plugin.{module}" for module in MODULES}
    assert {path for path in paths for module in old if path == module or path.startswith(f"{module}.")} == set()


# ---- tests


ASSERTING = ("assert", "check_", "gradcheck", "gradgradcheck")
PYTEST = ("raises", "warns", "fail")


def asserts_something(node: ast.AST) -> bool:
    """Whether a statement inside asserts, or calls what does, by its name."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assert):
            return True
        if isinstance(inner, ast.Call):
            name = inner.func.attr if isinstance(inner.func, ast.Attribute) else getattr(inner.func, "id", "")
            of_pytest = isinstance(inner.func, ast.Attribute) and getattr(inner.func.value, "id", "") == "pytest"
            if name.startswith(ASSERTING) or (of_pytest and name in PYTEST):
                return True
    return False


def test_every_test_asserts_something():
    idle = [
        f"{file.relative_to(ROOT)}::{node.name}"
        for file in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(parse(file))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not asserts_something(node)
    ]
    assert idle == []


def test_a_test_without_an_assertion_is_seen():
    assert not asserts_something(ast.parse("def test_nothing():\n    solve(x, y)\n"))
    assert asserts_something(ast.parse("def test_raises():\n    with pytest.raises(ValueError):\n        solve()\n"))
    assert asserts_something(ast.parse("def test_close():\n    torch.testing.assert_close(a, b)\n"))
