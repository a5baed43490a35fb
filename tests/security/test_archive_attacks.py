"""Attacks by archives, compressed tables and names: little memory, no file from outside, and the rest is read."""

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from contextlib import contextmanager

import pytest
from PIL import Image

from tavq_plugin.data.read import read_records
from tavq_plugin.data.read_settings import ReadSettings

MIB = 2**20
LARGE = 60 * MIB  # more than what each test lets Python hold
SECRET = "the secret"


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def little_memory(most):
    """Fails if Python holds more bytes at once than this."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak / MIB:.0f} MiB"


class Zeros(io.RawIOBase):
    """So many zero bytes, which are nowhere."""

    def __init__(self, size):
        self.left = size

    def readable(self):
        return True

    def readinto(self, buffer):
        size = min(len(buffer), self.left)
        buffer[:size] = bytes(size)
        self.left -= size
        return size


def add(tar, name, content, size=None, **fields):
    """Add a member: bytes, or so many zeros."""
    info = tarfile.TarInfo(name)
    info.size = len(content) if size is None else size
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content) if size is None else io.BufferedReader(Zeros(size)))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
@pytest.mark.parametrize("ending", [".txt", ".json", ".png"])
def test_a_compressed_member_of_60_mb_is_rejected_in_little_memory(tmp_path, name, ending):
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        add(tar, "0.png", png())
        add(tar, "0.txt", b"a dog")
        add(tar, f"1{ending}", b"", size=LARGE)
        add(tar, "2.png", png())
        add(tar, "2.txt", b"a cat")
    assert (tmp_path / name).stat().st_size < 3 * MIB
    rejected = []
    with little_memory(40 * MIB):
        records = list(read_records(tmp_path / name, rejected.append, ReadSettings(largest_image=16 * MIB)))
    texts = [record.text for record in records if record.text]
    assert texts == ["A dog.", "A cat."]
    limit = "largest_image" if ending == ".png" else "largest_text"
    assert any(limit in rejection.reason and rejection.file.endswith(name) for rejection in rejected), rejected


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_of_60_mb_is_refused_in_little_memory(tmp_path, kind):
    with gzip.open(tmp_path / "a.tar", "wb", compresslevel=1) as packed:
        info = tarfile.TarInfo("header")
        info.type, info.size = kind, LARGE
        packed.write(info.tobuf())
        for _ in range(LARGE // MIB):
            packed.write(bytes(MIB))
    rejected = []
    with little_memory(40 * MIB):
        assert not list(read_records(tmp_path / "a.tar", rejected.append))
    assert len(rejected) == 1 and "a header of 62,914,560 bytes" in rejected[0].reason


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz"])
def test_a_compressed_table_that_is_one_long_line_is_rejected_in_little_memory(tmp_path, name):
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as packed:
        packed.write(b"id,text\n" if ".csv" in name else b'{"id": "')
        for _ in range(LARGE // MIB):
            packed.write(b"a" * MIB)
    rejected = []
    with little_memory(52 * MIB):
        settings = ReadSettings(largest_json=16 * MIB)
        assert not list(read_records(tmp_path / name, rejected.append, settings))
    assert rejected and "above the limit largest_" in rejected[0].reason


@pytest.fixture
def victim(tmp_path):
    """A picture and a text outside of the data."""
    (tmp_path / "victim.png").write_bytes(png())
    (tmp_path / "victim.txt").write_text(SECRET)
    return tmp_path / "victim"


def test_members_that_lead_out_of_an_archive_give_no_record_and_write_nothing(tmp_path, victim):
    (tmp_path / "data").mkdir()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with tarfile.open(tmp_path / "data" / "a.tar", "w") as tar:
        for number, kind in enumerate([tarfile.SYMTYPE, tarfile.LNKTYPE]):
            add(tar, f"{number}.txt", b"", type=kind, linkname=f"{victim}.txt")
            add(tar, f"{number}.png", b"", type=kind, linkname=f"{victim}.png")
        add(tar, "device.txt", b"", type=tarfile.CHRTYPE)
        add(tar, "../victim.txt", b"mine")
        add(tar, "../victim.png", png())
        add(tar, f"{victim}.png", png())
        add(tar, "5.png", png())
        add(tar, "5.txt", b"a dog")
    rejected = []
    records = list(read_records(tmp_path / "data" / "a.tar", rejected.append))
    assert [(record.id, record.text) for record in records if record.text] == [("5", "A dog.")]
    assert not any(SECRET in str(record) for record in records) and len(rejected) >= 7
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*before, "a.tar"])
    assert (tmp_path / "victim.txt").read_text() == SECRET


@pytest.mark.parametrize("field", ["image", "file_name", "masks"])
def test_names_that_lead_out_of_a_table_are_rejected(tmp_path, victim, field):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (data / "images" / "0.png").write_bytes(png())
    names = ["../victim.png", "images/../../victim.png", f"{victim}.png", "..\\victim.png", "a\0.png", "x" * 5000]
    rows = [{"image": "0.png", "id": str(i), "text": "A wall."} | {field: name} for i, name in enumerate(names)]
    if field == "masks":
        rows = [row | {"masks": [row["masks"]]} for row in rows]
    if field == "file_name":
        rows = [{name: value for name, value in row.items() if name != "image"} for row in rows]
    (data / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rejected = []
    assert not list(read_records(data, rejected.append))
    assert [rejection.line for rejection in rejected] == [1, 2, 3, 4, 5, 6]


class Run:
    """Unpickling calls `os.system`, which makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_pickles_and_yaml_targets_run_nothing(tmp_path):
    import pickle

    import torch
    from typer.testing import CliRunner

    from tavq_plugin.cli.app import app

    ran = tmp_path / "ran"
    folder = tmp_path / "refcoco"
    folder.mkdir()
    (folder / "refs(unc).p").write_bytes(pickle.dumps([Run(ran)]))
    (folder / "instances.json").write_text('{"images": [], "annotations": [], "categories": []}')
    torch.save({"model": {"w": torch.ones(2)}, "x": Run(ran)}, tmp_path / "a.ckpt")
    (tmp_path / "a.yaml").write_text(f"target: os.system\nparams: {{command: touch {ran}}}\n")
    rejected = []
    try:
        assert not list(read_records(folder, rejected.append))
    except ValueError as error:
        rejected.append(error)
    assert rejected and "refs(unc).p" in str(rejected[0])
    for command in (
        ["convert-checkpoint", tmp_path / "a.ckpt"],
        ["convert-checkpoint", tmp_path / "a.ckpt", "--allow", "posix.system"],
        ["doctor", tmp_path / "a.yaml"],
    ):
        done = CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "300"})
        assert done.exit_code == 2 and "system" in done.output, done.output
        assert "--allow posix" not in done.output and "--allow os" not in done.output, done.output
    assert not ran.exists()
