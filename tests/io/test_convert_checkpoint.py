"""Old checkpoints become safetensors and JSON; classes off the allow-list are refused by name and never run."""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.tiny_hosts import tiny
from safetensors.torch import load_file
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.io.convert_checkpoint import convert_checkpoint, read_checkpoint


def weights():
    return collections.OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.tensor([1, 2]))


class Attack:
    """Unpickling calls `what`."""

    def __init__(self, what, *args):
        self.what, self.args = what, args

    def __reduce__(self):
        return self.what, self.args


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_a_llamagen_like_file_is_converted(tmp_path, old):
    source = tmp_path / "0001.pt"
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    args = argparse.Namespace(lr=1e-4, betas=(0.9, 0.95), folder=pathlib.PosixPath("/data/x"), inf=float("inf"))
    content = {"model": weights(), "ema": weights(), "optimizer": optimizer.state_dict(), "steps": 7, "args": args}
    torch.save(content, source, _use_new_zipfile_serialization=not old)
    files = convert_checkpoint(source)
    assert [file.name for file in files] == ["0001.model.safetensors", "0001.ema.safetensors", "0001.json"]
    for file in files[:2]:
        loaded = load_file(file)
        assert all(torch.equal(loaded[name], value) for name, value in weights().items())
    description = json.loads(files[2].read_text())
    rest = description["configuration"]
    assert rest["args"] == {"lr": 1e-4, "betas": [0.9, 0.95], "folder": "/data/x", "inf": "inf"}
    assert rest["steps"] == 7 and "model" not in rest and "ema" not in rest
    assert description["tensors_left_out"] == ["optimizer.state.0.exp_avg: 3", "optimizer.state.0.exp_avg_sq: 3"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([source.name, *(file.name for file in files)])


FOREIGN = """
import sys, types, torch
def make(module, name, base=object):
    parts = module.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[: i + 1]), types.ModuleType(parts[i]))
    cls = type(name, (base,), {"__module__": module})
    setattr(sys.modules[module], name, cls)
    return cls
Checkpoint = make("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
Attributes = make("pytorch_lightning.utilities.parsing", "AttributeDict", dict)
inner = Attributes(n_embed=16)
torch.save({
    "state_dict": {"quantize.embedding.weight": torch.ones(4, 2)}, "global_step": 3,
    "callbacks": {Checkpoint: {"best_model_score": torch.tensor(0.5), "best_model_path": "x.ckpt"}},
    "hyper_parameters": inner,
}, sys.argv[1])
"""


def test_a_lightning_1_like_file_is_converted_without_its_classes(tmp_path):
    source = tmp_path / "last.ckpt"
    subprocess.run([sys.executable, "-c", FOREIGN, source], check=True)
    files = convert_checkpoint(source, tmp_path / "new")
    assert [file.name for file in files] == ["new.safetensors", "new.json"]
    assert load_file(files[0])["quantize.embedding.weight"].sum() == 8
    rest = json.loads(files[1].read_text())["configuration"]
    name = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert rest["callbacks"][name] == {"best_model_score": 0.5, "best_model_path": "x.ckpt"}
    assert rest["hyper_parameters"] == {"n_embed": 16} and rest["global_step"] == 3


def test_omegaconf_containers_become_plain_values(tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    config = {"model": {"params": {"n": 16, "mult": [1, 2], "rate": 4.5e-6, "name": "x", "none": None, "on": True}}}
    torch.save({"state_dict": weights(), "config": omegaconf.OmegaConf.create(config)}, tmp_path / "a.ckpt")
    files = convert_checkpoint(tmp_path / "a.ckpt")
    assert json.loads(files[1].read_text())["configuration"]["config"] == config


def test_numpy_scalars_become_numbers(tmp_path):
    torch.save({"state_dict": weights(), "best": np.float64(0.25), "at": np.int64(3)}, tmp_path / "a.ckpt")
    rest = json.loads(convert_checkpoint(tmp_path / "a.ckpt")[1].read_text())["configuration"]
    assert rest == {"best": 0.25, "at": 3}


@pytest.mark.parametrize(
    ("what", "args", "name"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (eval, ("open('{}', 'w')",), "eval"),
        (subprocess.getoutput, ("touch {}",), "commands.getoutput"),  # its name in protocol 2
        (torch.load, ("{}",), "torch.serialization.load"),
        (os.open, ("{}", os.O_CREAT), "posix.open"),
    ],
)
@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_a_malicious_pickle_is_refused_by_name_and_not_run(tmp_path, what, args, name, old):
    source, victim = tmp_path / "evil.ckpt", tmp_path / "victim"
    args = tuple(arg.format(victim) if isinstance(arg, str) else arg for arg in args)
    content = {"state_dict": weights(), "args": argparse.Namespace(x=Attack(what, *args))}
    torch.save(content, source, _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match=rf"is refused: it names ({name}), which is not on the allow-list"):
        convert_checkpoint(source)
    assert [file.name for file in tmp_path.iterdir()] == ["evil.ckpt"]


def test_an_allowed_class_is_read_as_plain_values_and_not_imported(tmp_path, monkeypatch):
    made = type("Mine", (), {"__module__": "somewhere"})
    monkeypatch.setitem(sys.modules, "somewhere", type(sys)("somewhere"))
    sys.modules["somewhere"].Mine = made
    one = made()
    one.width = 3
    torch.save({"state_dict": weights(), "mine": one}, tmp_path / "a.ckpt")
    monkeypatch.delitem(sys.modules, "somewhere")
    with pytest.raises(ValueError, match=r"names somewhere.Mine.*--allow somewhere.Mine"):
        convert_checkpoint(tmp_path / "a.ckpt")
    files = convert_checkpoint(tmp_path / "a.ckpt", allow=["somewhere.Mine"])
    assert json.loads(files[1].read_text())["configuration"]["mine"] == {"width": 3}


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", "cut"])
def test_an_incomplete_checkpoint_is_refused(tmp_path, content):
    source = tmp_path / "a.ckpt"
    torch.save({"state_dict": weights()}, source)
    source.write_bytes(source.read_bytes()[:-200] if content == "cut" else content)
    with pytest.raises(ValueError, match="not a complete checkpoint that can be read safely"):
        read_checkpoint(source)


def test_tied_weights_and_nan_are_kept_and_reported(tmp_path):
    tied = torch.arange(4.0)
    torch.save({"a": tied, "b": tied[::2], "c": torch.tensor([1.0, float("nan")])}, tmp_path / "a.pth")
    files = convert_checkpoint(tmp_path / "a.pth")
    loaded = load_file(files[0])
    assert loaded["b"].tolist() == [0, 2] and loaded["c"][0] == 1
    assert json.loads(files[1].read_text())["not_finite"] == ["c"]


def test_nothing_is_overwritten_or_left_half_written(tmp_path):
    source = tmp_path / "a.pth"
    torch.save(weights(), source)
    convert_checkpoint(source)
    with pytest.raises(FileExistsError, match=r"a.safetensors, a.json would be overwritten: .*--force"):
        convert_checkpoint(source)
    convert_checkpoint(source, force=True)
    torch.save({"a": torch.zeros(2), "b": torch.eye(2).to_sparse()}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="sparse"):
        convert_checkpoint(tmp_path / "b.pth")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "a.pth", "a.safetensors", "b.pth"]


def test_a_converted_host_loads_strictly(tmp_path):
    host = tiny("taming-vq")
    torch.save({"state_dict": host.state_dict(), "epoch": 2}, tmp_path / "a.ckpt")
    files = convert_checkpoint(tmp_path / "a.ckpt")
    fresh = tiny("taming-vq")
    fresh.load_state_dict(load_file(files[0]), strict=True)
    assert all(torch.equal(value, host.state_dict()[name]) for name, value in fresh.state_dict().items())


def test_the_convert_command(tmp_path):
    torch.save(weights(), tmp_path / "a.pth")
    run = CliRunner().invoke(app, ["convert-checkpoint", str(tmp_path / "a.pth"), "--out", str(tmp_path / "b")])
    assert run.exit_code == 0 and (tmp_path / "b.safetensors").exists() and (tmp_path / "b.json").exists()
    torch.save({"x": Attack(os.system, "true")}, tmp_path / "evil.pth")
    run = CliRunner().invoke(app, ["convert-checkpoint", str(tmp_path / "evil.pth")])
    assert run.exit_code == 2 and "posix.system" in run.output
