"""Packs and folders: what is read, and what is refused with which words."""

import json
import os

import pytest
from PIL import Image

from tavq_plugin.data.folders import Pack
from tavq_plugin.data.synthetic_scenes import write_pack


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)


def pack(folder, *rows):
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("image"), str) and "/" not in row["image"]:
            image(folder / "images" / row["image"])
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    folder.mkdir(exist_ok=True)
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def test_long_text_comes_before_captions_and_empty_ones_are_counted(tmp_path):
    made = pack(
        tmp_path / "p",
        {"image": "a.png", "captions": ["short"], "long_text": "A long text."},
        {"image": "b.png", "captions": ["a dog runs", "two men."]},
        {"image": "c.png", "captions": [], "long_text": " "},
        {"image": "d.png"},
    )
    read = Pack.read(made)
    assert [record.text for record in read.records] == ["A long text.", "A dog runs. Two men.", "", ""]
    assert read.without_text == 2


def test_a_folder_of_images_with_text_files(tmp_path):
    image(tmp_path / "sub" / "a.jpg")
    (tmp_path / "sub" / "a.txt").write_text("a dog runs\n\ntwo men.\n")
    image(tmp_path / "b.png")
    read = Pack.read(tmp_path)
    assert [(record.id, record.text) for record in read.records] == [
        ("b.png", ""),
        ("sub/a.jpg", "A dog runs. Two men."),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"image": "b.png", ', r"captions.jsonl, line 2: not JSON"),
        ({"captions": ["x"]}, 'line 2: no "image"'),
        ({"image": "b.png", "captions": "x"}, 'line 2: "long_text" must be a string'),
        ({"image": "a.png"}, "captions.jsonl: image 'a.png' stands in two lines"),
        ({"image": "../a.png"}, "line 2: image '../a.png' leads out of"),
        ({"image": "/etc/hostname"}, "line 2: image '/etc/hostname' leads out of"),
        ({"image": "none/b.png"}, "line 2: no file 'none/b.png'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        Pack.read(pack(tmp_path / "p", {"image": "a.png"}, row))


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    image(tmp_path / "secret.png")
    (tmp_path / "p").mkdir()
    os.symlink(tmp_path / "secret.png", tmp_path / "p" / "a.png")
    with pytest.raises(ValueError, match="link out of"):
        Pack.read(tmp_path / "p")


def test_nothing_to_read_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match="takes a folder of images with text"):
        Pack.read(tmp_path / "none")
    with pytest.raises(ValueError, match=r"give a folder with captions.jsonl and images/"):
        Pack.read(tmp_path)


def test_a_pack_without_a_split_gets_a_seeded_one(tmp_path):
    read = Pack.read(pack(tmp_path / "p", *({"image": f"{i}.png"} for i in range(40))))
    train, held_out = read.split(seed=1)
    assert (len(train), len(held_out)) == (34, 6)
    assert not {record.id for record in train} & {record.id for record in held_out}
    assert read.split(seed=1) == (train, held_out) != read.split(seed=2)


def test_a_packs_own_split_keeps_to_the_held_out_sources(tmp_path):
    rows = [{"image": f"{i}.png", "split": "train", "source": "ab"[i % 2]} for i in range(10)]
    rows += [{"image": f"v{i}.png", "split": "val", "source": "a"} for i in range(3)]
    train, held_out = Pack.read(pack(tmp_path / "p", *rows)).split(n_train=4, n_eval=2)
    assert {record.source for record in train} == {"a"} and len(train) == 4
    assert {record.split for record in held_out} == {"val"} and len(held_out) == 2


def test_scenes_make_a_pack_that_reads_back(tmp_path):
    write_pack(tmp_path / "scenes", 20, seed=3, resolution=16)
    read = Pack.read(tmp_path / "scenes")
    train, held_out = read.split()
    assert (len(train), len(held_out)) == (17, 3) and read.without_text == 0
    assert read.records[0].boxes and read.records[0].qa
    with pytest.raises(FileExistsError, match="give a new folder"):
        write_pack(tmp_path / "scenes", 2)
