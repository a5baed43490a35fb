"""How docs/conf.py treats links that lead out of docs, on a small folder of pages."""

import subprocess
import sys

import pytest
from helpers.page_blocks import ROOT

pytest.importorskip("sphinx")
pytest.importorskip("furo")
pytest.importorskip("myst_parser")

pytestmark = pytest.mark.slow


def build(folder, page, builder="dummy"):
    """Sphinx' exit code and what it says, for docs/index.md in a folder with a page, a program and a folder beside."""
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(page, encoding="utf-8")
    (folder / "OTHER.md").write_text("# Other\n", encoding="utf-8")
    (folder / "examples").mkdir()
    (folder / "examples" / "loop.py").write_text("print(1)\n", encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", builder, "-c", ROOT / "docs"]
    done = subprocess.run([*command, folder / "docs", folder / "out"], capture_output=True, text=True)
    return done.returncode, done.stderr


def test_links_out_of_docs_give_the_files(tmp_path):
    links = "[loop](../examples/loop.py), [other](../OTHER.md), [its heading](../OTHER.md#other), [all](../examples)"
    code, said = build(tmp_path, f"# A\n\n{links}\n", "html")
    assert code == 0, said
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert html.count("reference download") == 3
    assert {file.name for file in (tmp_path / "out" / "_downloads").rglob("*.*")} == {"loop.py", "OTHER.md"}


def test_links_to_nothing_fail(tmp_path):
    targets = ["../examples/none.py", "../NONE.md", "none.md", "../examples/none/", "#nothing"]
    code, said = build(tmp_path, "# A\n\n" + "\n".join(f"[a link]({target})" for target in targets))
    assert code != 0
    assert [target for target in targets if target.strip("#") not in said] == []
