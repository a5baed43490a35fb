"""The data of a task from a user's folder: what is read, cut with the image, counted and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tavq_plugin.data.synthetic_scenes import write_scenes
from tavq_plugin.tasks.folder_data import folder_data
from tavq_plugin.tasks.task_data import drawn_data


def write(folder, rows, size=(40, 20)):
    """captions.jsonl with one noise image per row; the last two are held out, and one more is there to test on."""
    (folder / "images").mkdir(parents=True)
    draw = np.random.default_rng(0)
    lines = []
    for i, row in enumerate([*rows, {}]):
        name = f"{i}.png"
        Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(folder / "images" / name)
        split = "test" if i == len(rows) else "val" if i >= len(rows) - 2 else "train"
        lines.append(json.dumps({"image": name, "split": split, **row}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def read(folder, **settings):
    return folder_data(folder, resolution=16, **{"tell": pytest.fail, **settings})


def test_scenes_from_a_folder_are_those_that_are_drawn(tmp_path):
    write_scenes(tmp_path / "scenes", 8, seed=3, resolution=32, held_out=0.5)
    ours = folder_data(tmp_path / "scenes", resolution=32).held_out
    theirs = drawn_data(resolution=32, n_train=4, n_eval=4, seed=3).held_out
    assert torch.equal(ours.images, theirs.images) and [*ours.captions] == [*theirs.captions]
    for one, other in zip(ours.boxes, theirs.boxes, strict=True):
        assert [(box["phrase"], box["unique"]) for box in one] == [(box["phrase"], box["unique"]) for box in other]
        torch.testing.assert_close([box["box"] for box in one], [list(box["box"]) for box in other])
    assert [list(map(dict, each)) for each in ours.questions] == [list(map(dict, each)) for each in theirs.questions]
    assert ours.labels is None


def test_captions_stay_apart_and_a_long_text_is_one(tmp_path):
    rows = [{"captions": ["A dog runs.", " a cat "]}, {"text": "One. Two."}, {"captions": []}, {}, {"text": "x"}]
    data = read(write(tmp_path / "a", rows))
    assert data.train.captions == [("A dog runs.", "a cat"), ("One. Two.",), ()]
    assert data.held_out.boxes == () and data.held_out.questions == ()


def test_boxes_are_cut_to_the_central_square_with_the_image(tmp_path):
    inside = {"phrase": "dog", "xywh": [10, 0, 10, 20]}  # the square is x 10 … 30 of 40 × 20 pixels
    cut = {"phrase": "cat", "box": [0.2, 0.5, 0.5, 1.0]}  # x 8 … 20
    outside = {"phrase": "cat", "xywh": [0, 0, 12, 5]}
    data = read(write(tmp_path / "a", [{"boxes": [inside, cut, outside]}, {}, {}, {}]))
    first = data.train.boxes[0]
    assert [(box["phrase"], box["box"], box["unique"]) for box in first] == [
        ("dog", [0.0, 0.0, 0.5, 1.0], True), ("cat", [0.0, 0.5, 0.5, 1.0], False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"boxes": [{"phrase": "dog", "xywh": [30, 0, 20, 20]}]}, r"0.png: the box \[30.0, 0.0, 50.0, 20.0\] of 'dog'"),
        ({"boxes": [{"phrase": "dog", "box": [0.5, 0, 0.5, 1]}]}, "is empty or outside"),
        ({"boxes": [{"phrase": "dog"}]}, "0.png: .* is no box"),
        ({"qa": [{"question": "  ", "answer": "red"}]}, "0.png: .* is no question with its answer"),
        ({"qa": [{"question": "what?"}]}, "is no question with its answer"),
    ],
)
def test_broken_annotations_are_refused_by_name(tmp_path, row, why):
    with pytest.raises(ValueError, match=why):
        read(write(tmp_path / "a", [row, {}, {}, {}]))


def test_too_few_images_and_a_missing_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="gives 1 image to train"):
        read(write(tmp_path / "a", [{}, {}, {}]))
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere")


def test_images_of_both_splits_are_left_out_and_told(tmp_path):
    folder, said = write(tmp_path / "a", [{}, {}, {}, {"split": "val"}, {}, {}]), []
    (folder / "images" / "5.png").write_bytes((folder / "images" / "0.png").read_bytes())
    data = read(folder, tell=said.append)
    assert len(data.train) == 3 and len(data.held_out) == 2 and "left out 1: held-out images" in said[0]


def test_the_fingerprint_is_of_images_and_annotations(tmp_path):
    first = read(write(tmp_path / "a", [{"text": "a"}, {}, {}, {}])).fingerprint
    assert read(write(tmp_path / "b", [{"text": "a"}, {}, {}, {}])).fingerprint == first
    assert read(write(tmp_path / "c", [{"text": "b"}, {}, {}, {}])).fingerprint != first
    assert read(write(tmp_path / "d", [{"text": "a"}, {}, {}, {}, {}])).fingerprint != first


def celeba(folder: Path, *, mask=(8, 8)):
    """Twenty faces: skin on the left half, and an eye in it."""
    for name in ("CelebA-HQ-img", "celeba-caption", "CelebAMask-HQ-mask-anno/0"):
        (folder / name).mkdir(parents=True)
    draw = np.random.default_rng(1)
    for i in range(20):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / "CelebA-HQ-img" / f"{i}.jpg")
        (folder / "celeba-caption" / f"{i}.txt").write_text("She smiles.\nShe has long hair.\n")
        for part, size in (("skin", (8, 8)), ("l_eye", mask)):
            pixels = np.zeros(size[::-1], dtype=np.uint8)
            pixels[:, :4] = 255
            if part == "l_eye":
                pixels[:, 1:] = 0
            Image.fromarray(pixels).save(folder / "CelebAMask-HQ-mask-anno" / "0" / f"{i:05}_{part}.png")
    return folder


def test_records_that_a_published_data_set_lacks_are_told(tmp_path):
    (tmp_path / "annotations").mkdir()
    rows = {split: [{"id": i, "file_name": f"{i}.png"} for i in range(4)] for split in ("train2017", "val2017")}
    draw = np.random.default_rng(2)
    for split, images in rows.items():
        (tmp_path / split).mkdir()
        for row in images[1:]:  # the first one is missing
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / row["file_name"])
        captions = [{"image_id": row["id"], "caption": f"{split} {row['id']}"} for row in images]
        file = tmp_path / "annotations" / f"captions_{split}.json"
        file.write_text(json.dumps({"images": images, "annotations": captions}))
    said = []
    data = folder_data(tmp_path, resolution=8, tell=said.append)
    assert "left out 2 broken records; the first: " in said[0] and "0.png" in said[0]
    assert [caption for (caption,) in data.held_out.captions] == ["val2017 1", "val2017 2", "val2017 3"]
    assert len(data.train) == 2 and all(caption.startswith("train2017") for (caption,) in data.train.captions)


def test_masks_become_label_maps(tmp_path):
    data = folder_data(celeba(tmp_path / "faces"), resolution=8, tell=pytest.fail)
    eye, skin = data.classes.index("l_eye"), data.classes.index("skin")
    expected = torch.tensor([eye, skin, skin, skin, 0, 0, 0, 0], dtype=torch.uint8).expand(8, 8)
    assert all(torch.equal(labels, expected) for labels in (*data.train.labels, *data.held_out.labels))
    assert data.train.captions[0] == ("She smiles.", "She has long hair.")


def test_masks_of_different_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="label map of 0.jpg: .* give one size"):
        folder_data(celeba(tmp_path / "faces", mask=(4, 4)), resolution=8, tell=pytest.fail)
