"""What all commands have in common: groups, an example, --json, --debug, exit codes, errors on standard error."""

import os
import re
import shlex
import signal

import pytest
import typer
from helpers.page_blocks import ROOT
from typer.main import get_command
from typer.testing import CliRunner

from tavq_plugin.cli import console
from tavq_plugin.cli.app import COMMANDS, MIGRATE, TEXTS, TRAIN, TRY, USE, app
from tavq_plugin.cli.console import console_for, print_json, report_errors

NARROW = {"COLUMNS": "80"}
WITHOUT_JSON = {
    ("convert-checkpoint",),
    *(("store", name) for name in ("export", "merge", "append", "whiten")),
}  # they print no numbers


def leaves(command, path=()):
    """Every command that runs something: its path and itself."""
    children = getattr(command, "commands", {})
    if not children:
        yield path, command
    for name, child in children.items():
        yield from leaves(child, (*path, name))


LEAVES = dict(leaves(get_command(app)))


@pytest.fixture
def failing():
    """Runs a block's error through `report_errors`, and gives the exit code."""

    def run(error, **options):
        with pytest.raises(typer.Exit) as stopped, report_errors(console_for(False), "All[b] is kept", **options):
            raise error
        return stopped.value.exit_code

    return run


def test_the_help_shows_the_groups():
    shown = CliRunner().invoke(app, ["--help"], env=NARROW).output
    places = [shown.index(f" {title} ") for title in (TRY, TEXTS, TRAIN, USE, MIGRATE)]
    assert places == sorted(places), shown


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_help_fits_80_columns_and_has_what_all_commands_have(path):
    result = CliRunner().invoke(app, [*path, "--help"], env=NARROW)
    assert result.exit_code == 0 and max(map(len, result.output.splitlines())) <= 80, result.output
    assert "--debug" in result.output, result.output
    assert ("--json" in result.output) != (path in WITHOUT_JSON), result.output


def test_the_example_of_every_command_is_valid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.ckpt").touch()
    for _, function, example in COMMANDS:
        name, *arguments = shlex.split(example)[1:]
        assert name == function.__name__.replace("_", "-")
        assert LEAVES[(name,)].make_context(name, arguments).params, example


def test_the_page_names_every_command_and_exit_code():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert {path[0] for path in LEAVES} <= set(re.findall(r"`([\w-]+)`", page))
    codes = {
        getattr(console, name) for name in ("DONE", "BROKEN", "REFUSED", "LEFT_OUT", "STOPPED", "STOPPED_BY_SCHEDULER")
    }
    assert codes == {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}


def test_an_error_goes_to_standard_error_as_plain_text(failing, capsys):
    assert failing(ValueError("a [red]name[/red] and C:\\[x]")) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "ValueError: a [red]name[/red] and C:\\[x]\n"


def test_debug_adds_the_traceback(failing, capsys, monkeypatch):
    assert failing(ValueError("bad"), debug=True) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("TAVQ_DEBUG", "1")
    assert failing(ValueError("bad")) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_stop_says_what_is_kept(failing, capsys):
    assert failing(KeyboardInterrupt()) == 130
    assert "Stopped. All[b] is kept. Give the same command again to continue." in capsys.readouterr().err


def test_a_scheduler_that_ends_the_process_gets_code_75(capsys):
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as stopped, report_errors(console_for(False), "All is kept"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.exit_code == 75 and signal.getsignal(signal.SIGTERM) is former
    assert "All is kept" in capsys.readouterr().err


def test_with_json_other_prints_go_to_standard_error(capsys):
    with report_errors(console_for(True), "All is kept", as_json=True):
        print("a host talks")
    print_json({"psnr": 20.5, "name": "größer"})
    printed = capsys.readouterr()
    assert printed.out == '{\n  "psnr": 20.5,\n  "name": "größer"\n}\n' and printed.err == "a host talks\n"


def test_the_version_is_printed():
    from importlib.metadata import version

    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.output.strip() == version("tavq-plugin")
