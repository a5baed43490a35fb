"""Checkpoints as other programs write them are understood, or refused with a sentence that says what the file is."""

import datetime
import gzip
import json
import os
import subprocess
import sys
import types

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tavq_plugin.io.convert_checkpoint import convert_checkpoint, read_checkpoint, state_dicts

W = {"w": torch.ones(2), "b.c": torch.zeros(1)}


def converted(tmp_path, content, **options):
    torch.save(content, tmp_path / "a.ckpt")
    files = convert_checkpoint(tmp_path / "a.ckpt", force=True, **options)
    return [load_file(file) for file in files[:-1]], json.loads(files[-1].read_text())


@pytest.mark.parametrize(
    ("entry", "value", "kind"),
    [
        ("m._extra_state", None, "NoneType"),
        ("m._extra_state", {"scale": torch.ones(3)}, "dict"),
        ("initialized", True, "bool"),
        ("version", "2", "str"),
    ],
)
def test_a_state_dict_may_hold_an_entry_that_is_no_tensor(tmp_path, entry, value, kind):
    (weights,), description = converted(tmp_path, {"model": {**W, entry: value}, "epoch": 3})
    assert weights.keys() == W.keys()
    assert description["not_tensors"] == [f"model.{entry}: {kind}"] and description["configuration"]["epoch"] == 3


def test_settings_with_a_tensor_among_them_are_no_state_dict():
    assert [name for name, _ in state_dicts({"m": W, "best": {"loss": torch.tensor(0.5), "epoch": 3}})] == ["m"]


def test_the_version_of_torch_is_read_as_text(tmp_path):
    _, description = converted(tmp_path, {"model": W, "v": torch.__version__})
    assert description["configuration"]["v"] == str(torch.__version__)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.complex64])
def test_small_and_complex_types_are_kept(tmp_path, dtype):
    (first, second), description = converted(tmp_path, {"model": W, "q": {"x": torch.zeros(2).to(dtype)}})
    assert first.keys() == W.keys() and second["x"].dtype == dtype and description["not_finite"] == []


def test_a_float8_that_is_not_a_number_is_reported(tmp_path):
    _, description = converted(tmp_path, {"x": torch.tensor([float("nan"), 1.0]).to(torch.float8_e4m3fn)})
    assert description["not_finite"] == ["x"]


def test_a_type_that_cannot_be_stored_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"a\.ckpt: model holds a tensor of torch.quint8 at 'x'"):
        converted(tmp_path, {"model": {"x": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)}})


def test_slashes_and_dots_in_names_give_files_in_the_same_folder(tmp_path):
    content = {"ema/0.99": W, "ema_0.99": W, "../../up": W, "a.b": W, "a": {"b": W}}
    weights, description = converted(tmp_path, content)
    assert len(weights) == 5 and all(part.keys() == W.keys() for part in weights)
    names = description["weights"]
    assert names.keys() == {"ema/0.99", "ema_0.99", "../../up", "a.b", "a.b+"} and len({*names.values()}) == 5
    assert all((tmp_path / name).is_file() for name in names.values())


@pytest.mark.parametrize(
    ("module", "allow"),
    [
        ("lightning.fabric.utilities.data", ()),
        ("lightning_fabric.utilities.data", ()),
        ("pytorch_lightning.utilities.parsing", ()),
        ("own.parsing", ("own.parsing.AttributeDict",)),
    ],
)
def test_a_dictionary_class_is_read_with_its_entries(tmp_path, monkeypatch, module, allow):
    file = tmp_path / "a.ckpt"
    made = type("AttributeDict", (dict,), {"__module__": module})
    with monkeypatch.context() as patched:  # modules of this name exist only while the file is written
        parts = module.split(".")
        for i in range(len(parts)):
            patched.setitem(sys.modules, ".".join(parts[: i + 1]), types.ModuleType(parts[i]))
        sys.modules[module].AttributeDict = made
        torch.save({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": made(n=16)}, file)
    assert read_checkpoint(file, allow=allow)["hyper_parameters"] == {"n": 16}


def test_a_namespace_is_read(tmp_path):
    _, description = converted(tmp_path, {"m": W, "cfg": types.SimpleNamespace(lr=0.1)})
    assert description["configuration"]["cfg"] == {"lr": 0.1}


class Run:
    def __init__(self, what, *args):
        self.what, self.args = what, args

    def __reduce__(self):
        return self.what, self.args


@pytest.mark.parametrize(("what", "args"), [(os.system, ("true",)), (eval, ("1",)), (subprocess.Popen, (("true",),))])
def test_nobody_is_advised_to_allow_a_function_or_a_tool_of_python(tmp_path, what, args):
    torch.save({"m": W, "x": Run(what, *args)}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="is refused: it names .* it may be an attack") as refused:
        read_checkpoint(tmp_path / "a.ckpt")
    assert "--allow" not in str(refused.value)


def test_a_date_may_be_allowed(tmp_path):
    torch.save({"m": W, "x": datetime.UTC}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="it names "):
        read_checkpoint(tmp_path / "a.ckpt")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html><title>Sign in</title></html>", "is a web page"),
        (b"\xef\xbb\xbf\n <html>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
        (LFS, "is a Git LFS pointer.*git lfs pull"),
        (b'{"error": "not found"}', "is JSON"),
        (gzip.compress(b"x", mtime=0), "compressed by gzip"),
        (b"", "not a complete checkpoint"),
        ("safetensors", "a safetensors file already"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, what):
    file = tmp_path / "a.ckpt"
    save_file(W, file) if content == "safetensors" else file.write_bytes(content)
    with pytest.raises(ValueError, match=f"a.ckpt .*{what}"):
        read_checkpoint(file)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_gives_a_value_error_with_the_file(tmp_path, data):
    """Bytes changed, cut or put in: the file is read, or refused by its name."""
    file = tmp_path / "a.ckpt"
    if not (tmp_path / "whole").exists():
        torch.save({"m": W, "n": [1, {"a": "x"}]}, tmp_path / "whole", _use_new_zipfile_serialization=False)
    whole = bytearray((tmp_path / "whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    file.write_bytes(whole)
    try:
        written = convert_checkpoint(file, force=True)
    except ValueError as error:
        assert "a.ckpt" in str(error)
    else:
        assert all(path.exists() for path in written)
