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


def test_a_bytearray_of_zeros_makes_no_large_json(tmp_path):
    files = convert_checkpoint(saved(tmp_path, {"m": W, "x": Run(bytearray, 200_000_000)}))
    assert files[-1].stat().st_size < 10_000
    assert json.loads(files[-1].read_text())["values_left_out"] == ["x: 200,000,000 bytes"]


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
