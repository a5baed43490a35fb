"""Checkpoints that ask for far more memory, text or disk than they hold are refused, and nothing is written."""

import json
import struct
import zipfile

import numpy as np
import pytest
import torch

from tavq_plugin.io.convert_checkpoint import convert_checkpoint

W = {"w": torch.ones(2)}


class Run:
    """Unpickling calls `what`."""

    def __init__(self, what, *args):
        self.what, self.args = what, args

    def __reduce__(self):
        return self.what, self.args


def saved(tmp_path, content, **options):
    torch.save(content, tmp_path / "a.ckpt", **options)
    assert (tmp_path / "a.ckpt").stat().st_size < 100_000
    return tmp_path / "a.ckpt"


def check_refused(file, match, **options):
    with pytest.raises(ValueError, match=match) as error:
        convert_checkpoint(file, **options)
    assert "a.ckpt" in str(error.value) and [path.name for path in file.parent.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_bytes_that_the_file_does_not_hold_are_not_made(tmp_path, old):
    file = saved(tmp_path, {"m": W, "x": Run(bytes, 200_000_000)}, _use_new_zipfile_serialization=not old)
    check_refused(file, "200,000,000 bytes without giving their values")


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_a_bytearray_that_the_file_does_not_hold_is_not_made(tmp_path, old):
    file = saved(tmp_path, {"m": W, "x": Run(bytearray, 200_000_000)}, _use_new_zipfile_serialization=not old)
    check_refused(file, "200,000,000 bytes without giving their values")


def test_a_long_bytearray_makes_no_large_json(tmp_path):
    torch.save({"m": W, "x": bytearray(200_000)}, tmp_path / "a.ckpt")
    description = json.loads(convert_checkpoint(tmp_path / "a.ckpt")[-1].read_text())
    assert description["values_left_out"] == ["x: 200,000 bytes"]


@pytest.mark.parametrize("array", [(np.ndarray, (10**9,)), (np._core.multiarray.scalar, np.dtype("S1000000000"))])
def test_arrays_and_values_that_the_file_does_not_hold_are_not_made(tmp_path, array):
    check_refused(saved(tmp_path, {"m": W, "x": Run(*array)}), "without giving")


def test_arrays_that_the_file_holds_are_read(tmp_path):
    content = {"m": W, "x": np.arange(3), "y": np.float32(2), "z": np.array(["a", "b"])}
    description = json.loads(convert_checkpoint(saved(tmp_path, content))[-1].read_text())
    assert description["tensors_left_out"] == ["x: 3", "z: 2"] and description["configuration"] == {"y": 2.0}


def test_an_expanded_tensor_is_not_written_out(tmp_path):
    file = saved(tmp_path, {"m": {"w": torch.zeros(1).expand(20_000_000_000)}})
    check_refused(file, r"holds tensors of 80,000,000,000 bytes, more than 4 times its size.*--max-growth")


def test_the_limit_of_growth_is_a_setting(tmp_path):
    file = saved(tmp_path, {"m": {"w": torch.zeros(1, dtype=torch.uint8).expand(70_000_000)}})
    check_refused(file, "70,000,000 bytes")
    assert convert_checkpoint(file, max_growth=1e6)[0].stat().st_size > 70_000_000


def test_tensors_that_expand_many_times_are_added_up(tmp_path):
    check_refused(
        saved(tmp_path, {"m": {f"w{i}": torch.zeros(1).expand(10_000_000) for i in range(4)}}), "160,000,000 bytes"
    )


def test_a_compressed_zip_is_refused_before_it_is_unpacked(tmp_path):
    torch.save(W | {"zeros": torch.zeros(25_000_000)}, tmp_path / "large")
    with zipfile.ZipFile(tmp_path / "large") as large, zipfile.ZipFile(tmp_path / "a.ckpt", "w") as small:
        for member in large.infolist():
            small.writestr(member.filename, large.read(member), zipfile.ZIP_DEFLATED)
    (tmp_path / "large").unlink()
    check_refused(tmp_path / "a.ckpt", "unpacks to 100,0.* bytes, more than 4 times")


def test_lists_within_lists_do_not_multiply(tmp_path):
    bomb = ["x"]
    for _ in range(40):
        bomb = [bomb, bomb]
    check_refused(saved(tmp_path, {"m": W, "x": bomb}), "more than 200,000 values.*--max-values")
    mapping = {"a": 1}
    for _ in range(40):
        mapping = {"a": mapping, "b": mapping}
    check_refused(saved(tmp_path, {"m": W, "x": mapping}), "too many nested dictionaries")


def test_a_long_text_many_times_does_not_multiply(tmp_path):
    check_refused(saved(tmp_path, {"m": W, "x": ["x" * 90_000] * 2_000}), "more than 200,000 values, or text")


def test_deep_nesting_and_circles_end(tmp_path):
    file = tmp_path / "a.ckpt"
    deep = b"".join([b"\x80\x02}(X\x01\0\0\0x", b"]" * 50_000, b"a" * 49_999, b"u."])
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", deep)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
    check_refused(file, "nested too deeply")
    circle = {"m": W}
    circle["self"] = circle
    torch.save(circle, file)
    assert [path.name for path in convert_checkpoint(file)] == ["a.safetensors", "a.json"]


def test_a_number_of_many_digits_is_left_out(tmp_path):
    files = convert_checkpoint(saved(tmp_path, {"m": W, "x": 10**500}))
    assert json.loads(files[-1].read_text())["values_left_out"] == ["x: a number of 1,661 bits"]


def test_a_tensor_larger_than_its_memory_is_refused(tmp_path):
    file = saved(tmp_path, {"m": {"w": torch.ones(77)}}, _use_new_zipfile_serialization=False)
    content = file.read_bytes()
    assert content.count(b"K\x4d") == 2  # once the memory's size, once the tensor's
    at = content.rindex(b"K\x4d")
    file.write_bytes(content[:at] + b"J" + struct.pack("<i", 2**30) + content[at + 2 :])
    check_refused(file, "not a complete checkpoint")


def pickled(tmp_path, *instructions):
    """A checkpoint whose pickle is these instructions and a state dict without tensors."""
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", b"".join([b"\x80\x02", *instructions, b"."]))
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
    return tmp_path / "a.ckpt"


def text(content):
    return b"X" + struct.pack("<I", len(content)) + content


PAIRS = b")q\1" + b"h\1h\1\x86q\1" * 60  # a tuple of two of the tuple before, sixty times


@pytest.mark.parametrize("codec", [b"hex", b"utf-32", b"unicode_escape", b"uu"])
def test_a_chain_of_encodings_does_not_double(tmp_path, codec):
    """Sixty steps would ask for 2^60 bytes."""
    chain = [b"c_codecs\nencode\nq\2", text(b"x" * 100), b"q\1", *[b"h\2h\1", text(codec), b"\x86Rq\1"] * 60]
    check_refused(pickled(tmp_path, *chain), f"encodes by '{codec.decode()}' what may grow")


def test_a_chain_through_another_function_does_not_double(tmp_path):
    inner = [b"c_codecs\nencode\n", b"cbuiltins\nbytearray\n", text(b"x"), text(b"hex"), b"\x86", b"N", b"tR"]
    check_refused(pickled(tmp_path, b"ctorch._tensor\n_rebuild_from_type_v2\n(", *inner), "encodes by 'hex'")


@pytest.mark.parametrize("name", ["builtins\nstr", "torch.torch_version\nTorchVersion"])
def test_the_text_of_nested_lists_is_not_written(tmp_path, name):
    call = [PAIRS, f"c{name}\n".encode(), b"h\1\x85R"]
    check_refused(pickled(tmp_path, *call), "a text of tuple")


@pytest.mark.parametrize("instructions", [b"}h\1K\1s", b"}(h\1K\1u", b"cbuiltins\nset\nh\1\x85\x85R"])
def test_a_key_of_nested_tuples_is_not_looked_up(tmp_path, instructions):
    check_refused(pickled(tmp_path, PAIRS, instructions), "a key of more than 100 values")


def test_copies_of_a_list_do_not_add_up(tmp_path):
    copies = [b"](" + b"N" * 9_000 + b"eq\1", b"cbuiltins\nlist\nq\2"]
    file = pickled(tmp_path, b"]q\3(", *copies, *[b"h\2h\1\x85R"] * 2_000, b"e")
    check_refused(file, "makes more than .* by copying what it holds.*--max-growth")


@pytest.mark.parametrize("name", ["torch\nTensor", "torch\nFloatTensor", "torch.storage\nUntypedStorage"])
def test_tensors_that_the_file_does_not_hold_are_not_made(tmp_path, name):
    call = [f"c{name}\n".encode(), b"J" + struct.pack("<i", 2**30), b"\x85R"]
    check_refused(pickled(tmp_path, *call), "without giving its values")


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_bytes_texts_and_copies_of_honest_files_are_read(tmp_path, old):
    content = {
        "m": W,
        "b": b"caf\xc3\xa9",
        "a": bytearray(b"x"),
        "s": {1, (2, 3)},
        "v": torch.__version__,
        "n": torch.Size([2]),
    }
    file = saved(tmp_path, content, _use_new_zipfile_serialization=not old)
    description = json.loads(convert_checkpoint(file)[-1].read_text())
    assert description["configuration"]["n"] == [2] and "caf" in description["configuration"]["b"]
