"""Each format that is understood, with the fields, names and ids that people's files have."""

import csv
import gzip
import io
import json
import os
import tarfile

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from tavq_plugin.data.folders import ImageTextFolder
from tavq_plugin.data.read import read_records
from tavq_plugin.data.read_counts import ReadCounts
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.torch_datasets import ImageDataset, TarImageDataset

DECOMPOSED, COMPOSED = "cafe\u0301", "caf\u00e9"


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def put(file, content=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    content = png() if content is None else content
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def archive(file, members, mode="w"):
    with tarfile.open(file, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def read(place, **settings):
    """Ids and texts, and the rejections; every part is accounted for."""
    rejected, counts = [], ReadCounts()
    records = list(read_records(place, rejected.append, ReadSettings(**settings), counts))
    counts.check(place)
    return [(record.id, record.text) for record in records], [rejection.reason for rejection in rejected]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "image, caption\n0.png, A dog.\n"),
        ("t.csv", "image;caption\n0.png;A dog.\n"),
        ("t.tsv", "image\tcaption\n0.png\tA dog.\n"),
        ("t.csv", '\ufeffimage,"caption"\r\n0.png,"A dog."\r\n'),
        ("t.csv", "image,caption\r0.png,A dog.\r"),
        ("T.CSV", "image,caption\n0.png,A dog.\n"),
        ("t.ndjson", '{"image": "0.png", "text": "A dog."}\n'),
        ("t.json", '[{"image": "0.png", "text": "A dog."}]'),
        ("t.json", '\ufeff[{"file_name": "0.png", "caption": ["a dog"]}]'),
        ("t.jsonl", '{"image": "0.png", "text": "\ufeffA dog."}\n'),
        ("t.jsonl", '{"image": "0.png", "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt", "value": "A dog."}]}\n'),  # noqa: E501
        ("t.jsonl", '{"image": "0.png", "conversations": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}]}\n'),  # noqa: E501
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_tables_of_text(tmp_path, name, content, packed):
    put(tmp_path / "0.png")
    content = content.encode()
    file = put(tmp_path / (f"{name}.gz" if packed else name), gzip.compress(content) if packed else content)
    assert read(file) == ([("0.png", "A dog.")], [])


def test_several_rows_of_an_image_are_joined_and_a_repeated_text_stays_once(tmp_path):
    for i in range(2):
        put(tmp_path / f"{i}.png")
    texts = ["A dog.", "It runs.", "A dog.", "brown fur", "Grass."]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *(("0.png", text) for text in texts), ("1.png", "A cat.")])
    records = list(read_records(tmp_path / "t.csv"))
    assert [(r.id, r.text) for r in records] == [("0.png", "A dog. It runs. Brown fur. Grass."), ("1.png", "A cat.")]
    assert records[0].captions == ("A dog.", "It runs.", "brown fur", "Grass.") and records[1].line == 7


def test_rows_that_do_not_fit_the_header_are_rejected(tmp_path):
    file = put(tmp_path / "t.csv", 'id,text\n0,A dog, asleep.\n1,"A dog, asleep."\n2,A cat.,\n')
    assert read(file) == ([("1", "A dog, asleep."), ("2", "A cat.")], [
        "3 values, but the header names 2 columns: put a text that holds ',' into double quotes"
    ])  # fmt: skip
    assert "names a column twice" in read(put(tmp_path / "u.csv", "id,text,text\n0,a,b\n"))[1][0]


def test_other_fields_are_named_by_the_user(tmp_path):
    put(tmp_path / "0.png")
    file = put(tmp_path / "t.csv", "picture_id,image,description,text\nx,0.png,A dog.,No.\n")
    assert read(file, text_field="description", id_field="picture_id") == ([("x", "A dog.")], [])
    assert read(file, id_field="key")[1] == [
        "no field 'key' with the id among the fields picture_id, image, description, text"
    ]
    (record,) = read_records(put(tmp_path / "t.jsonl", '{"image": "0.png", "description": "A dog."}'))
    assert (record.text, record.fields) == ("", ("image", "description"))
    tar = archive(tmp_path / "a.tar", [("0.json", b'{"key": 7, "description": "A dog."}'), ("0.png", png())])
    assert read(tar, text_field="description", id_field="key") == ([("7", "A dog.")], [])


def test_a_json_object_in_place_of_a_list_is_rejected_with_its_fields(tmp_path):
    found, reasons = read(put(tmp_path / "t.json", '{"images": [], "annotations": []}'))
    assert not found and reasons == ["holds an object with the fields images, annotations; give a list with one object per image"]  # fmt: skip # noqa: E501
    assert read(put(tmp_path / "u.json", '[{"id": 1, "text": "A dog."}, 5]')) == (
        [("1", "A dog.")], ["entry 2 is no object; give one object per image"],
    )  # fmt: skip


def test_image_folders_with_metadata_and_splits(tmp_path):
    row = '{"file_name": "0.png", "text": "A %s."}\n'
    put(tmp_path / "a" / "0.png")
    put(tmp_path / "a" / "metadata.jsonl", row % "dog")
    assert read(tmp_path / "a") == ([("0.png", "A dog.")], [])
    for split, word in (("train", "dog"), ("test", "cat")):
        put(tmp_path / "b" / split / "0.png")
        put(tmp_path / "b" / split / "metadata.jsonl", row % word)
    records = list(read_records(tmp_path / "b"))
    assert [(r.id, r.text, r.split) for r in records] == [
        ("test/0.png", "A cat.", "test"),
        ("train/0.png", "A dog.", "train"),
    ]
    put(tmp_path / "c" / "0.png")
    put(tmp_path / "c" / "metadata.csv", "file_name,caption\n0.png,A dog.\n")
    assert read(tmp_path / "c") == ([("0.png", "A dog.")], [])


def test_parquet_with_images_inside(tmp_path):
    rows = [{"image": {"bytes": png(c), "path": None}, "caption": f"A {c} wall."} for c in ("red", "blue")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    records = list(read_records(tmp_path / "t.parquet"))
    assert [(r.id, r.text) for r in records] == [("0", "A red wall."), ("1", "A blue wall.")]
    image, name = ImageDataset(records, 8)[1]
    assert (name, image[:, 0, 0].tolist()) == ("1", [0, 0, 255])
    for part in "ab":
        named = [{"image": {"bytes": png(), "path": "0.png"}, "text": f"A {part}."}]
        file = put(tmp_path / "hub" / "data" / f"{part}.parquet", b"")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(named), file)
    assert read(tmp_path / "hub") == ([("a.parquet/0.png", "A a."), ("b.parquet/0.png", "A b.")], [])


def test_a_text_beside_an_image_has_the_limit_of_a_text(tmp_path):
    put(tmp_path / "0.png")
    put(tmp_path / "0.txt", "A dog.")
    put(tmp_path / "1.png")
    with (tmp_path / "1.txt").open("wb") as large:
        large.truncate(40_000_000_000)  # no byte of it is on the disk
    rejected = []
    assert [record.id for record in read_records(tmp_path, rejected.append)] == ["0.png"]
    assert len(rejected) == 1 and rejected[0].file.endswith("1.txt") and "largest_text=16,777,216" in rejected[0].reason


def test_a_truncated_table_is_named(tmp_path):
    file = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"id": "0", "text": "A dog."}]), file)
    file.write_bytes(file.read_bytes()[:-20])
    whole = gzip.compress(b'{"id": "0", "text": "A dog."}\n' * 2000)
    for broken, words in (
        (file, "not Parquet, or truncated"),
        (put(tmp_path / "t.jsonl.gz", whole[:-20]), "truncated, or not compressed by gzip"),
        (put(tmp_path / "u.jsonl.gz", b"plain"), "truncated, or not compressed by gzip"),
        (put(tmp_path / "v.tar.gz", b"plain"), "truncated, or not an archive"),
    ):
        rejected = []
        list(read_records(broken, rejected.append))
        assert rejected[-1].file == str(broken) and words in rejected[-1].reason


def test_a_data_set_of_save_to_disk_is_read_without_the_datasets_library(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / split
        folder.mkdir()
        table = pyarrow.Table.from_pylist([{"image": {"bytes": png(), "path": None}, "text": f"A {split}."}])
        with pyarrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
            stream.write_table(table)
        put(folder / "state.json", json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    assert read(tmp_path / "train") == ([("0", "A train.")], [])
    put(tmp_path / "dataset_dict.json", '{"splits": ["train", "test"]}')
    assert read(tmp_path) == ([("train/0", "A train."), ("test/0", "A test.")], [])
    put(tmp_path / "test" / "data-00000-of-00001.arrow", b"broken")
    assert "not Arrow, or truncated" in read(tmp_path)[1][0]
    put(tmp_path / "dataset_dict.json", '{"splits": ["../elsewhere"]}')
    with pytest.raises(ValueError, match="is no name of a file beside it"):
        read(tmp_path)


def test_names_with_dots_in_archives_and_folders(tmp_path):
    names = ["IMG_2023.06.01", "IMG_2023.06.02"]
    members = [(f"{n}.{e}", c) for n in names for e, c in (("jpg", png()), ("txt", f"A {n[-1]}.".encode()))]
    expected = [(f"{n}", f"A {n[-1]}.") for n in names]
    assert read(archive(tmp_path / "a.tar", members)) == (expected, [])
    for name, content in members:
        put(tmp_path / "f" / name, content)
    assert read(tmp_path / "f") == ([(f"{n}.jpg", text) for n, text in expected], [])
    many = [(f"photo.{i:04}.png", png()) for i in range(30)]
    assert [name for name, _ in read(archive(tmp_path / "b.tar", many))[0]] == [f"photo.{i:04}" for i in range(30)]


def test_parts_of_a_webdataset_record_stay_parts(tmp_path):
    members = [("a.depth.png", png()), ("a.jpg", png("blue")), ("a.seg.png", png()), ("a.txt", b"a dog"), ("a.cls", b"1")]  # fmt: skip # noqa: E501
    counts = ReadCounts()
    (record,) = read_records(archive(tmp_path / "a.tar", members), settings=ReadSettings(), counts=counts)
    assert (record.id, record.text, record.image) == ("a", "A dog.", png("blue"))
    assert (counts.parts, counts.used, counts.skipped.total()) == (5, 2, 3)
    assert "2 unread parts of a record" in counts.told() and ".cls" in counts.told()


def test_captions_in_the_json_of_an_archive(tmp_path):
    members = [("0.json", b'\xef\xbb\xbf{"captions": ["a dog", "It runs."]}'), ("0.png", png())]
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")):
        (record,) = read_records(archive(tmp_path / name, members, mode))
        assert (record.id, record.text, record.captions) == ("0", "A dog. It runs.", ("a dog", "It runs."))


def test_large_members_and_rows_are_rejected_before_they_are_read(tmp_path):
    file = archive(tmp_path / "a.tar", [("0.txt", b"x" * 5000), ("0.png", png()), ("1.txt", b"a dog")], "w:gz")
    found, reasons = read(file, largest_text=1000)
    assert found == [("0", ""), ("1", "A dog.")] and "'0.txt': it has 5,000 bytes or more" in reasons[0]
    assert "largest_text=1,000" in reasons[0]
    assert "largest_image=10" in read(file, largest_image=10)[1][0]
    lines = b'{"id": "0", "text": "%s"}\n{"id": "1", "text": "A dog."}\n' % (b"x" * 5000)
    found, reasons = read(put(tmp_path / "t.jsonl.gz", gzip.compress(lines)), largest_text=1000)
    assert found == [("1", "A dog.")] and "a line too long" in reasons[0]
    assert "largest_json=100" in read(put(tmp_path / "t.json", json.dumps(["x" * 200])), largest_json=100)[1][0]
    with pytest.raises(ValueError, match="largest_text must be a number of bytes"):
        ReadSettings(largest_text=0)


def test_a_giant_header_of_an_archive_is_refused(tmp_path):
    file = archive(tmp_path / "a.tar", [("0.txt", b"a dog"), ("d/" * 600_000 + "x.txt", b"no")], "w:gz")
    found, reasons = read(file)
    assert found == [] and "a header of 1,2" in reasons[0]


def test_equal_keys_in_two_archives_keep_their_own_texts(tmp_path):
    for name, colour in (("a", "red"), ("b", "blue")):
        archive(tmp_path / f"{name}.tar", [("0.png", png(colour)), ("0.txt", f"a {colour} wall".encode())])
    texts = dict(read(tmp_path)[0])
    assert texts == {"a.tar/0": "A red wall.", "b.tar/0": "A blue wall."}
    files = [tmp_path / "b.tar", tmp_path / "a.tar"]
    pairs = {name: image for image, name in TarImageDataset(files, 8)}
    assert pairs.keys() == texts.keys() and pairs["b.tar/0"][:, 0, 0].tolist() == [0, 0, 255]
    assert [name for _, name in TarImageDataset(files[:1], 8)] == ["0"]
    put(tmp_path / "c" / "a.tar", (tmp_path / "a.tar").read_bytes())
    with pytest.raises(ValueError, match="two archives have the same name"):
        TarImageDataset([*files, tmp_path / "c" / "a.tar"], 8)


def test_processes_read_different_archives(tmp_path):
    files = [archive(tmp_path / f"{i}.tar", [("x.png", png())]) for i in range(3)]
    shares = [[name for _, name in TarImageDataset(files, 8, part=(rank, 2))] for rank in range(2)]
    assert shares == [["0.tar/x", "2.tar/x"], ["1.tar/x"]]
    with pytest.raises(ValueError, match="at least one archive per process"):
        TarImageDataset(files, 8, part=(0, 4))


def test_the_share_is_that_of_torch_distributed(tmp_path):
    files = [archive(tmp_path / f"{i}.tar", [("x.png", png())]) for i in range(3)]
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("fake", rank=1, world_size=3, store=store)
    try:
        assert [name for _, name in TarImageDataset(files, 8)] == ["1.tar/x"]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode there")
def test_decomposed_names_meet_their_texts(tmp_path):
    put(tmp_path / "f" / f"{DECOMPOSED}.png")
    put(tmp_path / "f" / f"{COMPOSED}.txt", "a dog")
    expected = [(f"{COMPOSED}.png", "A dog.")]
    assert read(tmp_path / "f") == (expected, [])
    put(tmp_path / "t" / "images" / DECOMPOSED / f"{DECOMPOSED}.png")
    put(tmp_path / "t" / "captions.jsonl", json.dumps({"image": f"{COMPOSED}/{COMPOSED}.png", "text": "A dog."}))
    assert read(tmp_path / "t") == ([(f"{COMPOSED}/{COMPOSED}.png", "A dog.")], [])
    tar = archive(tmp_path / "a.tar", [(f"{DECOMPOSED}.png", png()), (f"{COMPOSED}.txt", b"a dog")])
    assert read(tar) == ([(COMPOSED, "A dog.")], [])


def test_every_file_and_member_is_accounted_for(tmp_path):
    for name in ("0.png", "0.txt", "lone.txt", "1.gif", ".DS_Store", "notes.md"):
        put(tmp_path / "f" / name, None if name == "0.png" else "a dog")
    (tmp_path / "f" / "gone.png").symlink_to(tmp_path / "nothing.png")
    counts, rejected = ReadCounts(), []
    assert len(list(read_records(tmp_path / "f", rejected.append, counts=counts))) == 1
    assert (counts.parts, counts.used, counts.rejected, counts.skipped.total()) == (7, 2, 1, 4)
    assert counts.skipped == {".gif": 1, ".md": 1, "system files": 1, ".txt without an image of its name": 1}
    counts = ReadCounts()
    members = [(".DS_Store", b"x"), ("./._0.png", b"x"), ("0.png", png()), ("0.txt", b"a dog"), ("1.json", b"{")]
    list(read_records(archive(tmp_path / "a.tar", members), rejected.append, counts=counts))
    assert (counts.parts, counts.used, counts.rejected, counts.skipped) == (5, 2, 1, {"system files": 2})
    counts.parts += 1
    with pytest.raises(RuntimeError, match="6 rows, members or files came in, but 5 were accounted for"):
        counts.check("a.tar")


def test_published_data_sets_are_read_for_training_as_for_a_store(tmp_path):
    put(tmp_path / "val" / "1.jpg")
    content = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}
    put(tmp_path / "annotations" / "captions_val.json", json.dumps(content))
    (record,) = ImageTextFolder.read(tmp_path).records
    assert (record.id, record.text, record.split) == ("val/1.jpg", "A dog.", "val")
    tar = archive(tmp_path / "a.tar", [("0.txt", b"a dog")])
    with pytest.raises(ValueError, match="record '0' has no image"):
        ImageTextFolder.read(tar)
