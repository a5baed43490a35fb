"""Whatever bytes a file holds, readers give records, or rejections with file and reason, and count every part."""

import gzip
import io
import json
import tarfile

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tavq_plugin.data.read import read_records
from tavq_plugin.data.read_counts import ReadCounts

LIMITS = settings(
    max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["id", "image", "text", "captions", "caption", "conversations", "boxes", "qa", "masks", "flag"]
)
ROWS = st.lists(st.dictionaries(FIELDS | st.text(max_size=3), VALUES, max_size=5), max_size=4)


def all_is_accounted_for(file):
    """Whether each part of a file is in a record, a rejection or a skip, with its file and a reason."""
    rejected, counts = [], ReadCounts()
    records = list(read_records(file, rejected.append, counts=counts))
    counts.check(file)
    return (
        all(isinstance(record.id, str) and isinstance(record.text, str) for record in records)
        and all(rejection.file == str(file) and rejection.reason for rejection in rejected)
        and counts.used + counts.rejected >= len(records) + len(rejected)
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.tar", "a.jsonl.gz", "a.tar.gz"])
@LIMITS
@given(content=st.binary(max_size=200))
def test_any_bytes(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert all_is_accounted_for(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
@LIMITS
@given(rows=ROWS)
def test_any_rows(tmp_path, name, rows):
    content = json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    assert all_is_accounted_for(tmp_path / name)


@LIMITS
@given(text=st.text(alphabet=st.sampled_from('ab,;\t|"\n\r \ufeff\x00é'), max_size=60))
def test_any_table(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(f"id,text\n{text}".encode())
    assert all_is_accounted_for(tmp_path / "a.csv")


def tar_bytes(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


NAMES = st.text(alphabet="ab./é", min_size=1, max_size=6)
ENDINGS = st.sampled_from([".png", ".txt", ".json", ".jpg", ".cls", ""])
MEMBERS = st.lists(st.tuples(st.builds(str.__add__, NAMES, ENDINGS), st.binary(max_size=12)), max_size=12)


@LIMITS
@given(members=MEMBERS, keep=st.floats(0, 1), flip=st.integers(0, 2000))
def test_any_archive_also_truncated_or_damaged(tmp_path, members, keep, flip):
    content = bytearray(tar_bytes(members))
    (tmp_path / "a.tar").write_bytes(content)
    assert all_is_accounted_for(tmp_path / "a.tar")
    content[flip % len(content)] ^= 1
    (tmp_path / "a.tar").write_bytes(content[: int(keep * len(content))])
    assert all_is_accounted_for(tmp_path / "a.tar")


@LIMITS
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4))
def test_a_damaged_parquet_file(tmp_path, flips):
    rows = [{"id": str(i), "text": "A dog.", "image": {"bytes": b"GIF", "path": None}} for i in range(3)]
    table, buffer = pyarrow.Table.from_pylist(rows), io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    content = bytearray(buffer.getvalue())
    for place, change in flips:
        content[int(place * len(content))] ^= change
    (tmp_path / "a.parquet").write_bytes(content)
    assert all_is_accounted_for(tmp_path / "a.parquet")


@LIMITS
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4))
def test_a_damaged_file_of_a_saved_data_set(tmp_path, flips):
    rows = [{"id": str(i), "text": "A dog.", "image": {"bytes": b"GIF", "path": None}} for i in range(3)]
    table, buffer = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with pyarrow.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    content = bytearray(buffer.getvalue())
    for place, change in flips:
        content[int(place * len(content))] ^= change
    (tmp_path / "a.arrow").write_bytes(content)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    rejected, counts = [], ReadCounts()
    list(read_records(tmp_path, rejected.append, counts=counts))
    counts.check(tmp_path)
    assert all(str(tmp_path) in rejection.file and rejection.reason for rejection in rejected)
