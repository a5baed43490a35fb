"""`tavq --help` is fast: neither the package nor the help of any command imports what training needs."""

import json
import subprocess
import sys

from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.cli.demo_settings import N_EVAL, N_TRAIN
from tavq_plugin.training.demo_recipe import PACKAGED, PACKAGED_SIDE, STEPS

HEAVY = ("torch", "numpy", "transformers", "PIL", "pyarrow", "einops", "ot")

# Prints, as JSON, what each step imports. It runs in a new process, because this one has imported torch.
LOADED = f"""
import json, sys
import tavq_plugin
def heavy():
    return sorted(set({HEAVY!r}) & sys.modules.keys())
loaded = {{"import tavq_plugin": heavy()}}
from tavq_plugin.cli.app import app
loaded["import tavq_plugin.cli.app"] = heavy()
from typer.main import get_command
from typer.testing import CliRunner
def visit(command, path):
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output, (path, result.output)
    loaded[" ".join(["tavq", *path, "--help"])] = heavy()
    for name, child in getattr(command, "commands", {{}}).items():
        visit(child, [*path, name])
visit(get_command(app), [])
print(json.dumps(loaded))
"""


def test_no_help_loads_torch():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert {"tavq --help", "tavq demo --help", "tavq prepare --help", "tavq store merge --help"} <= loaded.keys()
    assert all(not modules for modules in loaded.values()), loaded


def test_the_help_of_demo_shows_the_defaults():
    shown = " ".join(CliRunner().invoke(app, ["demo", "--help"], env={"COLUMNS": "200"}).output.split())
    assert f"Default: {STEPS[PACKAGED]} on drawn scenes of {PACKAGED_SIDE} px, else {STEPS['small']}." in shown
    assert f"Default: {N_TRAIN['folder']}, or {N_TRAIN['scenes']} drawn scenes." in shown
    assert f"Default: {N_EVAL['folder']}, or {N_EVAL['scenes']} drawn scenes." in shown
