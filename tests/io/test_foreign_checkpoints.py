"""Checkpoints as other programs write them are understood, or refused with a sentence that says what the file is."""

import datetime
import gzip
import io
import json
import os
import struct
import subprocess
import sys
import types
import zipfile

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


FUZZ = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_or_refused_by_name(file):
    """Whether a file is converted whole, or refused by a ValueError with its name and nothing is written."""
    before = {path.name for path in file.parent.iterdir()}
    try:
        return all(path.exists() for path in convert_checkpoint(file, force=True))
    except ValueError as error:
        return file.name in str(error) and {path.name for path in file.parent.iterdir()} == before


def damaged(content, data):
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    return bytes(content)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@FUZZ
@given(data=st.data())
def test_any_damage_gives_a_value_error_with_the_file(tmp_path, old, data):
    """Bytes changed, cut or put in: the file is read, or refused by its name."""
    buffer = io.BytesIO()
    torch.save({"m": W, "n": [1, {"a": "x"}]}, buffer, _use_new_zipfile_serialization=not old)
    (tmp_path / "a.ckpt").write_bytes(damaged(buffer.getvalue(), data))
    assert read_or_refused_by_name(tmp_path / "a.ckpt")


def zipped(file, members):
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


@FUZZ
@given(data=st.data())
def test_a_whole_zip_with_damaged_members_gives_a_value_error_with_the_file(tmp_path, data):
    """Unlike damage to the zip, which its check sums find, this reaches torch's reader."""
    buffer = io.BytesIO()
    torch.save({"m": W, "n": [1, {"a": "x"}]}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = data.draw(st.sampled_from([name for name in members if members[name]]))
    members[name] = damaged(members[name], data)
    if data.draw(st.booleans()):
        del members[data.draw(st.sampled_from([*members]))]
    assert read_or_refused_by_name(zipped(tmp_path / "a.ckpt", members))


NAMES = [
    "_codecs encode", "builtins bytearray", "builtins set", "builtins str", "collections OrderedDict", "torch Size",
    "torch FloatStorage", "torch._utils _rebuild_tensor_v2", "numpy dtype", "posix system",
]  # fmt: skip
INSTRUCTIONS = st.one_of(
    st.sampled_from([b"(", b")", b"]", b"}", b"N", b"\x88", b"R", b"\x81", b"b", b"a", b"e", b"s", b"u", b"t", b"\x85",
                     b"\x86", b"\x87", b"Q", b"q\0", b"h\0", b"q\1", b"h\1"]),
    st.integers(0, 255).map(lambda value: b"K" + bytes([value])),
    st.integers(-(2**31), 2**31 - 1).map(lambda value: b"J" + struct.pack("<i", value)),
    st.sampled_from([b"w", b"storage", b"latin1", b"hex", b"0", b"cpu"]).map(
        lambda text: b"X" + struct.pack("<I", len(text)) + text
    ),
    st.sampled_from(NAMES).map(lambda name: b"c" + name.replace(" ", "\n").encode() + b"\n"),
)  # fmt: skip


@settings(FUZZ, max_examples=250)
@given(instructions=st.lists(INSTRUCTIONS, max_size=24))
def test_any_instructions_in_a_zip_give_a_value_error_with_the_file(tmp_path, instructions):
    pickled = b"".join([b"\x80\x02", *instructions, b"."])
    members = {"a/data.pkl": pickled, "a/version": "3\n", "a/byteorder": "little", "a/data/0": b"\0" * 8}
    assert read_or_refused_by_name(zipped(tmp_path / "a.ckpt", members))
