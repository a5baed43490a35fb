"""Folders of images with text: what is read, and what is refused with which words."""

import json
import os

import pytest
from PIL import Image

from tavq_plugin.data.folders import ImageTextFolder, from_folder
from tavq_plugin.data.synthetic_scenes import write_scenes


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
    read = ImageTextFolder.read(made)
    assert [record.text for record in read.records] == ["A long text.", "A dog runs. Two men.", "", ""]
    assert read.without_text == 2


def test_a_folder_of_images_with_text_files(tmp_path):
    image(tmp_path / "sub" / "a.jpg")
    (tmp_path / "sub" / "a.txt").write_text("a dog runs\n\ntwo men.\n")
    image(tmp_path / "b.png")
    read = ImageTextFolder.read(tmp_path)
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
        ({"image": "../a.png"}, "line 2: image '../a.png' leads out of"),
        ({"image": "/etc/hostname"}, "line 2: image '/etc/hostname' leads out of"),
        ({"image": "none/b.png"}, "line 2: no file 'none/b.png'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        ImageTextFolder.read(pack(tmp_path / "p", {"image": "a.png"}, row))


def test_lines_of_one_image_are_joined_and_refused_with_others_between(tmp_path):
    a, b = ({"image": name, "long_text": f"A {name[0]}."} for name in ("a.png", "b.png"))
    again = {"image": "a.png", "captions": ["it runs", "A a."]}
    read = ImageTextFolder.read(pack(tmp_path / "p", a, again, b))
    assert [(r.id, r.text) for r in read.records] == [("a.png", "A a. It runs."), ("b.png", "A b.")]
    with pytest.raises(ValueError, match="captions.jsonl: image 'a.png' appears in two lines"):
        ImageTextFolder.read(pack(tmp_path / "q", a, b, again))


def test_a_linked_images_folder_is_read(tmp_path):
    image(tmp_path / "scratch" / "a.png")
    made = pack(tmp_path / "p", {"image": "sub/a.png", "long_text": "A dog."}, {"image": "b/b.png"})
    os.symlink(tmp_path / "scratch", made / "images")
    (tmp_path / "scratch" / "sub").mkdir()
    os.symlink(tmp_path / "scratch" / "a.png", made / "images" / "sub" / "a.png")
    image(tmp_path / "scratch" / "b" / "b.png")
    os.symlink(made, tmp_path / "link")
    for folder in (made, tmp_path / "link"):
        assert [(record.id, record.text) for record in ImageTextFolder.read(folder).records] == [
            ("sub/a.png", "A dog."),
            ("b/b.png", ""),
        ]


@pytest.mark.parametrize(
    "name", ["../secret.png", "there/../../secret.png", "sub/../../../secret.png", "{root}/secret.png"]
)
def test_a_name_cannot_leave_the_folder_through_a_link(tmp_path, name):
    image(tmp_path / "secret.png")
    image(tmp_path / "scratch" / "sub" / "a.png")
    made = pack(tmp_path / "p", {"image": name.format(root=tmp_path)})
    os.symlink(tmp_path / "scratch", made / "images")
    os.symlink(tmp_path / "scratch", made / "there")
    with pytest.raises(ValueError, match="line 1: image .* leads out of"):
        ImageTextFolder.read(made)


def test_linked_folders_and_images_are_read_and_a_circle_is_rejected(tmp_path):
    image(tmp_path / "scratch" / "a.png")
    (tmp_path / "scratch" / "a.txt").write_text("a dog")
    image(tmp_path / "b.png")
    (tmp_path / "p").mkdir()
    os.symlink(tmp_path / "scratch", tmp_path / "p" / "images")
    os.symlink(tmp_path / "b.png", tmp_path / "p" / "b.png")
    assert [(r.id, r.text) for r in ImageTextFolder.read(tmp_path / "p").records] == [
        ("b.png", ""),
        ("images/a.png", "A dog."),
    ]
    os.symlink(tmp_path / "p", tmp_path / "scratch" / "again")
    os.symlink(tmp_path / "gone.png", tmp_path / "p" / "gone.png")
    rejected = []
    assert [r.id for r in from_folder(tmp_path / "p", rejected.append)] == ["b.png", "images/a.png"]
    assert ["broken link" in r.reason for r in rejected] == [True, False]
    assert "a link to a folder above it" in rejected[1].reason and rejected[1].file.endswith("images/again")


def test_a_missing_or_empty_folder_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match="takes a folder of images with text"):
        ImageTextFolder.read(tmp_path / "none")
    with pytest.raises(ValueError, match=r"give a folder with captions.jsonl and images/"):
        ImageTextFolder.read(tmp_path)


def test_written_scenes_are_read_back(tmp_path):
    write_scenes(tmp_path / "scenes", 20, seed=3, resolution=16)
    read = ImageTextFolder.read(tmp_path / "scenes")
    assert [len(split) for split in read.split()] == [14, 3, 3] and read.without_text == 0
    assert read.records[0].boxes and read.records[0].qa
    with pytest.raises(FileExistsError, match="give a new folder"):
        write_scenes(tmp_path / "scenes", 2)
