"""Readers of published data sets account for every row and file, also where rows and files do not fit."""

import json
import pickle
from contextlib import suppress

import pytest
from PIL import Image

from tavq_plugin.data.corpus import load_or_build_corpus
from tavq_plugin.data.read import read_records
from tavq_plugin.data.read_counts import ReadCounts


def images(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(file)


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def read(folder):
    """The records, the reasons of rejections, and what became of each part, which is checked."""
    rejected, counts = [], ReadCounts()
    records = list(read_records(folder, rejected.append, counts=counts))
    counts.check(folder)
    assert counts.parts >= len(records) + len(rejected)
    return records, [rejection.reason for rejection in rejected], counts


def cub(folder):
    images(folder / "images", "001.Jay/a.jpg", "001.Jay/b.jpg", "001.Jay/c.jpg", "001.Jay/extra.jpg")
    write(folder / "images.txt", "1 001.Jay/a.jpg\n2 001.Jay/b.jpg\nx\n4 001.Jay/gone.jpg\n5 001.Jay/c.jpg\n")
    write(folder / "train_test_split.txt", "1 1\n2 yes\n4 0\n5 0\n9 1\n")
    write(folder / "bounding_boxes.txt", "1 0 0 2 2\n5 0 0 two 2\n9 0 0 1 1\n")
    for name in ("a", "b", "c", "lost"):
        write(folder / f"text_c10/001.Jay/{name}.txt", "a blue bird\n")


def test_cub(tmp_path):
    cub(tmp_path)
    records, reasons, counts = read(tmp_path)
    assert [record.id for record in records] == ["001.Jay/a.jpg"]
    for words in ("'x' has one column", "no split", "no file '001.Jay/gone.jpg'", "0 0 two 2"):
        assert sum(words in reason for reason in reasons) == 1, words
    assert len(reasons) == 4
    assert counts.told() == (
        "not read: 2 rows of train_test_split.txt and bounding_boxes.txt whose number is not in images.txt, "
        "1 text without an image (such as lost.txt), 1 image that no row of images.txt names (such as extra.jpg)"
    )


def coco(folder):
    images(folder / "val", "1.jpg", "2.jpg", "extra.jpg")
    rows = [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2, 3)]
    write(
        folder / "annotations/captions_val.json",
        {
            "images": [rows[0], rows[2], {"file_name": "no_id.jpg"}, rows[0], "no object"],
            "annotations": [
                {"image_id": 1, "caption": "a dog"},
                {"image_id": 3, "caption": "of an image without a file"},
                {"image_id": 8, "caption": "of an image that is not listed"},
                {"image_id": 1, "caption": 5},
                {"caption": "of no image"},
            ],
        },
    )
    box = {"category_id": 3, "bbox": [0, 0, 1, 1]}
    write(
        folder / "annotations/instances_val.json",
        {
            "images": [*rows[:2], {"id": 3, "file_name": "other.jpg"}],
            "categories": [{"id": 3, "name": "dog"}, {"id": 4}],
            "annotations": [
                {**box, "image_id": 1},
                {**box, "image_id": 2},
                {**box, "image_id": 9},
                {**box, "image_id": 1, "bbox": [1, 2]},
                {**box, "image_id": [1]},
                {**box, "image_id": 1, "category_id": 4},
            ],
        },
    )


def test_coco(tmp_path):
    coco(tmp_path)
    records, reasons, counts = read(tmp_path)
    assert [(record.id, record.text, len(record.boxes)) for record in records] == [
        ("val/1.jpg", "A dog.", 1),
        ("val/2.jpg", "", 1),  # only the file of boxes has it
    ]
    for words in (
        "image 8,", "image 9,", "caption 5", "lacks 'image_id'", "bbox", "no file 'val/3.jpg'", "category 4", "'id'",
        "image id 1 comes twice", "is no object", "other.jpg",
    ):  # fmt: skip
        assert any(words in reason for reason in reasons), (words, reasons)
    assert "1 image that no row of annotations/*_val.json names (such as extra.jpg)" in counts.told()


def refcoco(folder):
    images(folder / "images", "1.jpg", "extra.jpg")
    write(
        folder / "instances.json",
        {
            "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2}, {"file_name": "3.jpg"}],
            "annotations": [{"id": 5, "bbox": [0, 0, 1, 1]}, {"id": 6}],
            "categories": [],
        },
    )
    sentence = {"split": "val", "image_id": 1, "sentences": [{"sent": "left dog"}]}
    refs = [{**sentence, "ann_id": 5}, {**sentence, "ann_id": 6}, "no object", {**sentence, "image_id": 2, "ann_id": 5}]
    refs.append({**sentence, "image_id": [1], "ann_id": 5})
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))


def test_refcoco(tmp_path):
    refcoco(tmp_path)
    records, reasons, counts = read(tmp_path)
    assert [(record.id, len(record.boxes)) for record in records] == [("val/1.jpg", 1)]
    assert len(reasons) == 7 and sum("instances.json" in reason for reason in reasons) >= 2
    assert counts.told() == "not read: 1 image that no row of refs(unc).p names (such as extra.jpg)"


def coco_qa(folder):
    images(folder / "train2014", "COCO_train2014_000000000005.jpg", "COCO_train2014_000000000009.jpg")
    columns = {
        "questions": ["what", "how many", " ", "where"],
        "answers": ["dog", "two", "x", "street"],
        "img_ids": ["5", "7", "5", "5"],
        "types": ["0", "1", "0", "9"],
    }
    for name, lines in columns.items():
        write(folder / f"train/{name}.txt", "\n".join(lines) + "\n")
    for name in columns:
        write(folder / f"test/{name}.txt", "a\n")
    (folder / "test/types.txt").write_bytes(b"caf\xe9\n")


def test_coco_qa(tmp_path):
    coco_qa(tmp_path)
    records, reasons, counts = read(tmp_path)
    assert [len(record.qa) for record in records] == [1]
    assert len(reasons) == 4 and counts.rejected == 4
    assert "1 image that no row of img_ids.txt names (such as COCO_train2014_000000000009.jpg)" in counts.told()


def daquar(folder):
    images(folder / "nyu_depth_images", "image1.png", "image2.png")
    write(
        folder / "qa.37.raw.train.txt",
        "what is red in the image1 ?\nbox\n\nwhat is it ?\nwhat is in the image9 ?\nbed\nwhat is in the image1 ?\n",
    )


def test_daquar(tmp_path):
    daquar(tmp_path)
    records, reasons, counts = read(tmp_path)
    assert [len(record.qa) for record in records] == [1]
    assert (counts.parts, counts.used, counts.rejected) == (7, 2, 4)  # lines, and an image that no line names
    assert len(reasons) == 3
    assert counts.told() == "not read: 1 image that no row of qa.37.raw.*.txt names (such as image2.png)"


def celeba(folder):
    images(folder / "CelebA-HQ-img", "0.jpg", "1.jpg", ".hidden.jpg")
    write(folder / "CelebA-HQ-img/notes.gif", "x")
    for name in ("0", "7"):
        write(folder / f"celeba-caption/{name}.txt", "a face")
    (folder / "celeba-caption/1.txt").write_bytes(b"caf\xe9")
    images(folder / "CelebAMask-HQ-mask-anno", "0/00000_hair.png", "0/00009_hair.png", "0/odd.png")


def test_celeba(tmp_path):
    celeba(tmp_path)
    records, reasons, counts = read(tmp_path)
    assert [(record.id, len(record.masks)) for record in records] == [("0.jpg", 1)]
    assert len(reasons) == 1 and "not UTF-8" in reasons[0]
    for words in ("1 system file", "1 .gif", "1 text without an image (such as 7.txt)",
                  "2 masks without an image (such as 00009_hair.png)"):  # fmt: skip
        assert words in counts.told(), counts.told()


@pytest.mark.parametrize("make", [cub, coco, refcoco, coco_qa, daquar, celeba])
def test_a_strict_reader_stops_with_file_and_place(tmp_path, make):
    make(tmp_path)
    with pytest.raises(ValueError, match=str(tmp_path)):
        list(read_records(tmp_path))


def test_train_and_compare_say_what_is_not_read(tmp_path):
    for i in range(8):
        images(tmp_path / "data/CelebA-HQ-img", f"{i}.jpg")
        Image.new("RGB", (8, 8), (30 * i, 0, 255 - 30 * i)).save(tmp_path / f"data/CelebA-HQ-img/{i}.jpg")
        write(tmp_path / f"data/celeba-caption/{i}.txt", f"a face number {i}")
    write(tmp_path / "data/celeba-caption/99.txt", "a face")
    told = []
    with suppress(ValueError):  # the pictures may be too alike for splits; what was not read was told before
        load_or_build_corpus(tmp_path / "out", tmp_path / "data", 8, n_train=4, n_eval=2, tell=told.append)
    assert "not read: 1 text without an image (such as 99.txt)" in told
