"""Attacks by Parquet and Arrow: rows and columns that outgrow their file are refused before they are in memory."""

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from PIL import Image

from tavq_plugin.data.read import read_records
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.torch_datasets import HubImageDataset, ImageDataset

MIB = 2**20


def png(size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that says it has this size, and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + end


def parquet(folder, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "t.parquet", compression="zstd")
    return folder / "t.parquet"


def saved_dataset(folder, rows):
    """The rows as `save_to_disk` of `datasets` writes them."""
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(folder / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    return folder


def image_row(content, text="A wall.", path=None):
    return {"image": {"bytes": content, "path": path}, "text": text}


@pytest.mark.parametrize("write", [parquet, saved_dataset])
def test_a_row_that_is_too_large_is_rejected_by_number_and_the_others_stay(tmp_path, write):
    rows = [image_row(png()), image_row(bytes(3 * MIB)), image_row(png(), "A wall. " * (MIB // 4)), image_row(png())]
    rejected = []
    settings = ReadSettings(largest_image=2 * MIB, largest_text=MIB)
    records = list(read_records(write(tmp_path, rows), rejected.append, settings))
    assert [record.id for record in records] == ["0", "3"]
    assert [rejection.line for rejection in rejected] == [2, 3]
    assert "largest_image=2,097,152; shorten it, or raise the limit" in rejected[0].reason
    assert "largest_text=1,048,576" in rejected[1].reason


@pytest.mark.parametrize("write", [parquet, saved_dataset])
def test_images_in_a_table_have_the_limit_of_pixels(tmp_path, write):
    records = list(read_records(write(tmp_path, [image_row(png()), image_row(png_header(30_000, 30_000))])))
    images = ImageDataset(records, 8)
    assert images[0][1] == "0"
    with pytest.raises(ValueError, match=r"more pixels than the limit.*TAVQ_MAX_PIXELS"):
        images[1]


def test_a_row_group_that_outgrows_its_file_is_refused_from_the_footer(tmp_path):
    file = parquet(tmp_path, [image_row(bytes(20 * MIB))])
    assert file.stat().st_size < 100_000
    rejected = []
    assert not list(read_records(file, rejected.append, ReadSettings(largest_image=4 * MIB)))
    (one,) = rejected
    assert one.line is None and one.file == str(file)
    assert "a row group grows from at most" in one.reason and "raise that limit if you trust it" in one.reason


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory is read from /proc")
def test_a_value_that_is_stored_once_and_repeated_takes_the_memory_of_one_row(tmp_path):
    """A dictionary holds the value once; as Python objects, 64 rows of it would take 64 times its bytes."""
    value = bytes(48 * MIB)
    table = pyarrow.table({"image": pyarrow.DictionaryArray.from_arrays([0] * 256, pyarrow.array([value])),
                           "id": pyarrow.array(list(map(str, range(256))))})  # fmt: skip
    pyarrow.parquet.write_table(
        table, tmp_path / "t.parquet", compression="zstd", store_schema=False, dictionary_pagesize_limit=128 * MIB
    )
    assert (tmp_path / "t.parquet").stat().st_size < MIB
    count = (
        "import sys; from tavq_plugin.data.read import read_records; from tavq_plugin.data.read_settings import *; "
        "print(sum(1 for record in read_records(sys.argv[1], settings=ReadSettings(largest_image=64 * MIB))))"
    )
    peak_kib = "next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))"
    # getrusage would also tell the peak of the process that started this one
    done = subprocess.run(
        [sys.executable, "-c", f"{count}; print({peak_kib})", str(tmp_path / "t.parquet")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows, peak = (int(number) for number in done.stdout.split())
    peak //= 1024
    assert rows == 256
    assert peak < 1800, f"{peak} MiB; torch takes 500, and 64 rows at once more than 6000"


class Undecoded:
    """The image feature of `datasets`, which decodes at once unless it is told not to."""

    def __init__(self, decode=True):
        self.decode = decode


class Rows(list):
    """Rows as `datasets.Dataset` has them."""

    column_names = ("image",)
    features = {"image": Undecoded()}  # noqa: RUF012

    def __getitem__(self, index):
        if self.features["image"].decode:
            raise MemoryError("decoded an image before its size was looked at")
        return super().__getitem__(index)

    def cast_column(self, name, feature):
        rows = Rows(self)
        rows.features = {name: feature}
        return rows


def test_datasets_do_not_decode_an_image_before_its_size_is_looked_at():
    rows = Rows([{"image": {"bytes": content, "path": None}} for content in (png(), png_header(30_000, 30_000), None)])
    images = HubImageDataset(rows, 8)
    assert images[0][0].shape == (3, 8, 8)
    with pytest.raises(ValueError, match=r"row 1: .*more pixels than the limit"):
        images[1]
    with pytest.raises(ValueError, match=r"row 2: no image"):
        images[2]
