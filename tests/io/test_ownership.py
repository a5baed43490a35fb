"""Files are whole, have the umask's mode and follow no link; only files that a marker lists are replaced or removed."""

import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from tavq_plugin.io.atomic import save_json, save_tensors, save_text, whole_file
from tavq_plugin.io.ownership import MARKER, claim, fresh_folder, refuse_strangers, remove, strangers


@pytest.fixture(params=[0o022, 0o027], ids=["022", "027"])
def mode(request):
    """The mode of a new file, under an umask that is set for the test."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def test_every_file_has_the_mode_of_the_umask(tmp_path, mode):
    save_tensors({"a": torch.ones(2)}, tmp_path / "weights.safetensors", metadata={"b": "c"})
    save_json(tmp_path / "settings.json", {})
    claim(tmp_path, ["others"], "us")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(["weights.safetensors", "settings.json", MARKER], mode)
    assert load_file(tmp_path / "weights.safetensors")["a"].tolist() == [1, 1]


def test_a_failed_write_leaves_only_the_old_file(tmp_path):
    save_text(tmp_path / "a.txt", "former")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "former"


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "thesis").write_text("years")
    for name in ("a.json", "a.json.partial", ".a.json.partial"):
        (tmp_path / name).symlink_to(tmp_path / "thesis")
    save_json(tmp_path / "a.json", [1])
    assert (tmp_path / "thesis").read_text() == "years" and not (tmp_path / "a.json").is_symlink()


def test_foreign_files_are_named_and_kept(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "notes.json").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.json is in the way .*another --out, or move it"):
        claim(tmp_path, ["notes.json"], "us")
    with pytest.raises(FileExistsError, match="runs is in the way"):
        claim(tmp_path, ["runs/"], "us")
    assert sorted(os.listdir(tmp_path)) == ["notes.json", "runs"] and (tmp_path / "notes.json").read_text() == "mine"


def test_one_command_does_not_take_another_commands_files(tmp_path):
    claim(tmp_path, ["picture.png"], "tavq demo")
    (tmp_path / "picture.png").touch()
    with pytest.raises(FileExistsError, match="it belongs to tavq demo"):
        claim(tmp_path, ["picture.png"], "tavq compare")
    claim(tmp_path, ["other.png"], "tavq compare")
    claim(tmp_path, ["picture.png"], "tavq demo")


def test_a_folder_is_removed_with_our_files_and_without_foreign_ones(tmp_path):
    folder = tmp_path / "run"
    claim(folder, ["a.json", "step-*/"], "us")
    (folder / "a.json").touch()
    (folder / ".a.json.0123456789ab.tmp").touch()  # left by a kill
    fresh_folder(folder / "step-1", ["state"], "us")
    (folder / "step-1" / "state").touch()
    assert strangers(folder) == []
    (folder / "step-1" / "thesis").touch()
    (folder / "step-by-step.txt").touch()  # a file, but the pattern is for folders
    (folder / "step-2").mkdir()
    (folder / "step-2" / "thesis").touch()  # a folder without a marker
    mine = [folder / "step-1" / "thesis", folder / "step-2" / "thesis", folder / "step-by-step.txt"]
    assert strangers(folder) == mine
    with pytest.raises(FileExistsError, match=r"thesis \(one of 3\) is in the way"):
        refuse_strangers(folder)
    remove(folder)
    assert all(path.exists() for path in mine) and not (folder / "a.json").exists()
    for path in mine:
        path.unlink()
    remove(folder)
    assert not folder.exists()


def test_a_fresh_folder_replaces_a_stopped_runs_and_no_other(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").touch()
    (tmp_path / ".run.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError, match=r"\.run\.partial is in the way"):
        fresh_folder(tmp_path / ".run.partial", ["a"], "us")
    assert os.listdir(tmp_path / "mine") == ["thesis"]
    fresh_folder(tmp_path / ".stopped.partial", ["a"], "us").joinpath("a").touch()
    assert os.listdir(fresh_folder(tmp_path / ".stopped.partial", ["a"], "us")) == [MARKER]


def test_a_damaged_marker_is_named(tmp_path):
    (tmp_path / MARKER).write_text("{")
    with pytest.raises(ValueError, match="not a marker of ours"):
        claim(tmp_path, ["a"], "us")
