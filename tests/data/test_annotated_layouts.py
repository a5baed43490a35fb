"""Published layouts with boxes, questions and masks, made small: what is read, and what is rejected or refused."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from tavq_plugin.data.daquar import from_daquar
from tavq_plugin.data.folders import ImageTextFolder
from tavq_plugin.data.label_maps import CELEBA_PARTS, label_classes, label_map, label_maps
from tavq_plugin.data.read import read_records
from tavq_plugin.data.refcoco import from_refcoco
from tavq_plugin.io.legacy_pickle import read_plain_pickle


def image(path, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")


# ---- COCO


def test_coco_boxes_are_unique_where_one_object_has_the_name_and_captions_may_be_missing(tmp_path):
    for i in (1, 2):
        image(tmp_path / "val2017" / f"{i}.jpg")
    boxes = [(1, 3, 0), (1, 3, 0), (1, 4, 0), (2, 3, 0), (2, 4, 1), (2, 9, 0)]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 12, "height": 10} for i in (1, 2, 3)],
        "categories": [{"id": 3, "name": "dog"}, {"id": 4, "name": "person"}],
        "annotations": [
            {"image_id": i, "category_id": kind, "bbox": [n, 0, 1, 1], "iscrowd": crowd}
            for n, (i, kind, crowd) in enumerate(boxes)
        ],
    }
    write(tmp_path / "annotations/instances_val2017.json", content)
    rejected = []
    records = list(read_records(tmp_path, rejected.append))
    assert [(record.id, record.text, record.split) for record in records] == [
        ("val2017/1.jpg", "", "val2017"),
        ("val2017/2.jpg", "", "val2017"),
    ]
    assert [[(box["phrase"], box["unique"]) for box in record.boxes] for record in records] == [
        [("dog", False), ("dog", False), ("person", True)],
        [("dog", True), ("person", False)],
    ]
    assert [("category 9" in r.reason, "3.jpg" in r.reason) for r in rejected] == [(True, False), (False, True)]
    write(tmp_path / "annotations/instances_val2017.json", {"images": []})
    with pytest.raises(ValueError, match="has no list 'categories', 'annotations'"):
        list(read_records(tmp_path))


# ---- RefCOCO


def ref(split, image_id, ann_id, *sentences):
    return {
        "split": split, "image_id": image_id, "ann_id": ann_id, "ref_id": ann_id, "category_id": 1,
        "file_name": f"COCO_train2014_{image_id}_{ann_id}.jpg",
        "sentences": [{"sent": text, "raw": text, "sent_id": 1, "tokens": text.split()} for text in sentences],
    }  # fmt: skip


REFS = [
    ref("train", 1, 10, "left dog", "brown dog"),
    ref("train", 1, 11, "right dog", "brown dog"),
    ref("train", 1, 11, "right dog"),
    ref("testA", 2, 12, "man"),
    ref("testA", 9, 13, "nobody"),
    ref("testA", 2, 12, " "),
    ref("val", 3, 14, "no picture"),
]


@pytest.fixture
def refcoco(tmp_path):
    root = tmp_path / "refcoco+"
    images = [{"id": i, "file_name": f"COCO_train2014_{i}.jpg", "width": 12, "height": 10} for i in (1, 2, 3)]
    annotations = [{"id": i, "image_id": 1, "bbox": [i - 10, 0, 2, 3]} for i in range(10, 15)]
    write(root / "instances.json", {"images": images, "annotations": annotations, "categories": []})
    for i in (1, 2):
        image(tmp_path / "coco" / f"COCO_train2014_{i}.jpg")
    os.symlink(tmp_path / "coco", root / "images")
    (root / "refs(unc).p").write_bytes(pickle.dumps(REFS, protocol=0))
    return root


def test_refcoco_gives_each_phrase_a_box_and_names_its_partition(refcoco):
    rejected = []
    first, second = read_records(refcoco, rejected.append)
    assert (first.id, first.split, first.source) == ("train/COCO_train2014_1.jpg", "train", "refcoco+ (unc)")
    assert first.boxes[0] == {"phrase": "left dog", "xywh": [0, 0, 2, 3], "size": (12, 10), "unique": True}
    assert [(box["phrase"], box["unique"]) for box in first.boxes] == [
        ("left dog", True), ("brown dog", False), ("right dog", True), ("brown dog", False),
    ]  # fmt: skip
    assert (second.split, [box["phrase"] for box in second.boxes]) == ("testA", ["man"])
    assert [r.line for r in rejected] == [5, 6, None]
    for rejection, words in zip(
        rejected, ("not in instances.json", "empty or not UTF-8", "may be a link"), strict=True
    ):
        assert words in rejection.reason
    with pytest.raises(ValueError, match=r"refs\(unc\).p, line 5"):
        list(read_records(refcoco))


def test_refcoco_with_several_partitions_asks_for_one(refcoco):
    write(refcoco / "refs(google).json", REFS[:1])
    with pytest.raises(ValueError, match="'google', 'unc', whose figures do not compare"):
        list(read_records(refcoco))
    (record,) = from_refcoco(refcoco, partition="google")
    assert record.source == "refcoco+ (google)"
    with pytest.raises(FileNotFoundError, match="umd"):
        list(from_refcoco(refcoco, partition="umd"))
    (refcoco / "refs(google).json").unlink()
    (refcoco / "instances.json").unlink()
    with pytest.raises(FileNotFoundError, match="published beside"):
        list(read_records(refcoco))


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_of_any_protocol_is_read_and_nothing_in_it_is_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "refs(unc).p"
    content = [{"a": [1, 2.5, None, True], "b": "café", "c": 10**20}]
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    assert read_plain_pickle(file) == content
    file.write_bytes(pickle.dumps([Hostile()], protocol=protocol))
    with pytest.raises(ValueError, match=r"is refused: it names posix.mkdir.* save its content as JSON"):
        read_plain_pickle(file)
    assert not (tmp_path / "hostile").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"(lp0\nI1\n", b"no pickle", b"\x80\x02cos\nsystem\n.", b"\x80\x02r\xff\xff\xff\x7f.", b"(i__main__\nA\n."],
)
def test_a_broken_or_hostile_pickle_is_refused(tmp_path, content):
    (tmp_path / "a.p").write_bytes(content)
    with pytest.raises(ValueError, match="is refused|is not a complete pickle"):
        read_plain_pickle(tmp_path / "a.p")


# ---- questions


def test_coco_qa_gives_each_image_its_questions(tmp_path):
    rows = {
        "questions.txt": ["what is it", "how many", "what color", "where", " "],
        "answers.txt": ["dog", "two", "red", "street", "x"],
        "img_ids.txt": ["5", "5", "6", "7", "5"],
        "types.txt": ["0", "1", "2", "9", "0"],
    }
    for name, lines in rows.items():
        write(tmp_path / "train" / name, "\n".join(lines) + "\none more" * (name == "questions.txt"))
    image(tmp_path / "val2014" / "COCO_val2014_000000000005.jpg")
    rejected = []
    with pytest.raises(ValueError, match=r"different numbers of lines \(questions.txt 6, answers.txt 5"):
        list(read_records(tmp_path, rejected.append))
    write(tmp_path / "train/questions.txt", "\n".join(rows["questions.txt"]))
    (record,) = read_records(tmp_path, rejected.append)
    assert (record.id, record.split, record.source) == ("train/COCO_val2014_000000000005.jpg", "train", "coco-qa")
    assert [(qa["question"], qa["answer"], qa["kind"]) for qa in record.qa] == [
        ("what is it", "dog", "object"),
        ("how many", "two", "number"),
    ]
    assert [r.line for r in rejected] == [4, 5, None]
    for rejection, words in zip(rejected, ("kind '9'", "empty", "image 6"), strict=True):
        assert words in rejection.reason


def test_daquar_gives_each_image_its_questions(tmp_path):
    for i in (1, 2):
        image(tmp_path / "nyu_depth_images" / f"image{i}.png")
    lines = [
        "what is on the right side of the black telephone in the image1 ?", "desk",
        "what is under the table in this image1 ?", "chair, lamp",
        "what is red ?",
        "how many chairs are there in the image2 ?",
        "what is blue in the image2 ?", "box",
        "what is in the image9 ?", "bed",
    ]  # fmt: skip
    write(tmp_path / "qa.37.raw.train.txt", "\n".join(lines))
    write(tmp_path / "qa.37.raw.test.txt", "what is it in the image2 ?\nsofa\n")
    rejected = []
    records = list(read_records(tmp_path, rejected.append))
    assert [(record.id, record.split, record.source) for record in records] == [
        ("train/image1.png", "train", "daquar-37"),
        ("train/image2.png", "train", "daquar-37"),
        ("test/image2.png", "test", "daquar-37"),
    ]
    assert [(qa["question"], qa["answer"]) for qa in records[0].qa] == [
        ("what is on the right side of the black telephone ?", "desk"),
        ("what is under the table ?", "chair, lamp"),
    ]
    assert [qa["answer"] for qa in records[1].qa] == ["box"]
    for rejection, words in zip(rejected, ("names no image", "no answer", "image9"), strict=True):
        assert words in rejection.reason
    write(tmp_path / "qa.894.raw.test.txt", "what is it in the image1 ?\nsofa\n")
    with pytest.raises(ValueError, match="sets 37, 894 of DAQUAR"):
        list(read_records(tmp_path))
    assert [record.source for record in from_daquar(tmp_path, classes="894")] == ["daquar-894"]


# ---- label maps


def mask(path, rows, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size, size), dtype=np.uint8)
    pixels[rows] = 255
    Image.fromarray(pixels).save(path)
    return path


def test_masks_of_celeba_become_maps_with_a_fixed_order_of_classes(tmp_path):
    for i in (0, 2):
        image(tmp_path / "CelebA-HQ-img" / f"{i}.jpg", (16, 16))
        write(tmp_path / "celeba-caption" / f"{i}.txt", "a face")
    anno = tmp_path / "CelebAMask-HQ-mask-anno"
    mask(anno / "0" / "00000_hair.png", slice(0, 4))
    mask(anno / "0" / "00000_skin.png", slice(2, 6))
    records = list(read_records(tmp_path))
    classes = label_classes(records)
    assert classes == ("background", *CELEBA_PARTS) and len(classes) == 19
    maps = label_maps(records, classes, 4)
    hair, skin = classes.index("hair"), classes.index("skin")
    assert maps.dtype == torch.uint8 and maps[0, :, 0].tolist() == [hair, hair, skin, 0] and not maps[1].any()


def test_masks_that_do_not_fit_are_refused_by_name(tmp_path):
    hair = mask(tmp_path / "1_hair.png", slice(0, 4))
    with pytest.raises(ValueError, match="1_hair.png: no class of background, skin"):
        label_map([hair], ("background", "skin"), 4)
    with pytest.raises(ValueError, match=r"16\) and another mask of its image \(8, 8\)"):
        label_map([hair, mask(tmp_path / "1_skin.png", 0, 16)], ("background", "hair", "skin"), 4)
    with pytest.raises(ValueError, match="IMAGE_PART.png"):
        label_map([mask(tmp_path / "1.png", 0)], ("background",), 4)
    (tmp_path / "1_hat.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="1_hat.png: not an image"):
        label_map([tmp_path / "1_hat.png"], ("background", "hat"), 4)


def test_a_pack_may_name_masks(tmp_path):
    image(tmp_path / "images" / "a.png", (8, 8))
    mask(tmp_path / "masks" / "a_roof.png", slice(0, 4))
    write(
        tmp_path / "captions.jsonl", json.dumps({"image": "a.png", "text": "A house.", "masks": ["masks/a_roof.png"]})
    )
    (record,) = ImageTextFolder.read(tmp_path).records
    assert label_classes([record]) == ("background", "roof") and label_classes([]) == ()
    for masks, words in ((["../a_roof.png"], "leads out of"), ("masks/a_roof.png", "list of file names")):
        write(tmp_path / "captions.jsonl", json.dumps({"image": "a.png", "masks": masks}))
        with pytest.raises(ValueError, match=words):
            ImageTextFolder.read(tmp_path)
