"""Published layouts, tables and archives, made small: what is read, and which records are rejected."""

import io
import json
import os
import tarfile

import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tavq_plugin.data.read import read_records
from tavq_plugin.data.torch_datasets import HubImageDataset, ImageDataset, TarImageDataset


def image(path, colour="red", size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def encoded(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), colour).save(buffer, "PNG")
    return buffer.getvalue()


def archive(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):  # a link
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def cub(tmp_path):
    root = tmp_path / "CUB_200_2011"
    names = ["001.Black_footed_Albatross/a_1.jpg", "002.Blue_Jay/b_2.jpg"]
    for name in names:
        image(root / "images" / name)
        write(root / "text_c10" / name.replace(".jpg", ".txt"), "\n".join(f"a bird number {i}" for i in range(10)))
    write(root / "images.txt", "".join(f"{i} {name}\n" for i, name in enumerate([*names, "003.None/c.jpg"], 1)))
    write(root / "train_test_split.txt", "1 1\n2 0\n3 1\n")
    write(root / "bounding_boxes.txt", "1 1.0 2.0 3.0 4.0\n2 0.0 0.0 5.0 5.0\n")
    return root


def test_cub_with_ten_captions_per_image(cub):
    rejected = []
    first, second = read_records(cub, rejected.append)
    assert first.text.startswith("A bird number 0. A bird number 1.") and first.text.count(".") == 10
    assert (first.split, second.split) == ("train", "test")
    assert second.boxes == ({"phrase": "blue jay", "xywh": [0.0, 0.0, 5.0, 5.0]},)
    assert [(r.line, "no file" in r.reason) for r in rejected] == [(3, True)]
    with pytest.raises(ValueError, match="images.txt, line 3: no file"):
        list(read_records(cub))


def test_celeba_hq_with_captions_and_masks(tmp_path):
    for i in (0, 2, 10):
        image(tmp_path / "CelebA-HQ-img" / f"{i}.jpg")
        write(tmp_path / "celeba-caption" / f"{i}.txt", f"a face {i}\nshe smiles\n")
    image(tmp_path / "CelebAMask-HQ-mask-anno" / "0" / "00002_hair.png")
    records = list(read_records(tmp_path))
    assert [record.id for record in records] == ["0.jpg", "2.jpg", "10.jpg"]
    assert records[1].text == "A face 2. She smiles."
    assert [[mask.name for mask in record.masks] for record in records] == [[], ["00002_hair.png"], []]


def test_coco_with_captions_and_boxes(tmp_path):
    image(tmp_path / "val2017" / "000000000007.jpg")
    images = [{"id": 7, "file_name": "000000000007.jpg", "width": 12, "height": 10}, {"id": 8, "file_name": "8.jpg"}]
    captions = [{"image_id": 7, "caption": "a dog"}, {"image_id": 7, "caption": "a brown dog."}]
    write(tmp_path / "annotations/captions_val2017.json", json.dumps({"images": images, "annotations": captions}))
    boxes = {"categories": [{"id": 3, "name": "dog"}], "annotations": [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}]}  # fmt: skip # noqa: E501
    write(tmp_path / "annotations/instances_val2017.json", json.dumps(boxes))
    rejected = []
    (record,) = read_records(tmp_path, rejected.append)
    assert (record.id, record.text, record.split) == ("val2017/000000000007.jpg", "A dog. A brown dog.", "val2017")
    assert record.boxes == ({"phrase": "dog", "xywh": [1, 2, 3, 4], "unique": True, "size": (12, 10)},)
    assert len(rejected) == 1 and "8.jpg" in rejected[0].reason


def test_csv_and_parquet_tables(tmp_path):
    image(tmp_path / "a.png")
    write(tmp_path / "t.csv", 'image,text\na.png,"A dog, asleep."\n../x.png,No.\nb.png,Gone.\n')
    rejected = []
    (record,) = read_records(tmp_path / "t.csv", rejected.append)
    assert (record.id, record.text, record.image.name) == ("a.png", "A dog, asleep.", "a.png")
    assert [r.line for r in rejected] == [3, 4]
    (tmp_path / "latin.csv").write_bytes(b"id,text\n1,caf\xe9\n2,tea\n")
    rejected = []
    assert [r.id for r in read_records(tmp_path / "latin.csv", rejected.append)] == ["2"]
    assert "not UTF-8" in rejected[0].reason
    rows = [{"id": str(i), "text": f"Text {i}.", "model": "m"} for i in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    records = list(read_records(tmp_path / "t.parquet"))
    assert [r.text for r in records] == ["Text 0.", "Text 1.", "Text 2."] and records[0].captioner
    with pytest.raises(ValueError, match="cannot read '.xls'"):
        write(tmp_path / "t.xls", "")
        read_records(tmp_path / "t.xls")


def test_archives_with_hostile_and_broken_members(tmp_path):
    archive(
        tmp_path / "w" / "0.tar",
        [
            ("a.png", encoded()),
            ("a.txt", b"a red shape_object"),
            ("b.json", json.dumps({"text": "A blue shape_object."}).encode()),
            ("b.png", encoded("blue")),
            ("../out.png", encoded()),
            ("/etc/x.png", encoded()),
            ("c.png", "a.png"),
            ("d.txt", b"caf\xe9"),
            ("e.json", b"{"),
            ("f.png", encoded()),
        ],
    )
    whole = archive(tmp_path / "w" / "1.tar", [("g.png", encoded()), ("h.png", encoded())])
    whole.write_bytes(whole.read_bytes()[:600])
    rejected = []
    records = {record.id: record for record in read_records(tmp_path / "w", rejected.append)}
    assert {name: record.text for name, record in records.items()} == {
        "0.tar/a": "A red shape_object.",
        "0.tar/b": "A blue shape_object.",
        "0.tar/f": "",
    }
    assert records["0.tar/b"].image == encoded("blue")
    reasons = " ".join(r.reason for r in rejected)
    for words in ("'../out.png': a name that leads out", "'/etc/x.png'", "'c.png': not a plain file", "'d'", "'e'"):
        assert words in reasons
    assert "truncated" in reasons
    assert sorted(os.listdir(tmp_path)) == ["w"]


def test_an_image_dataset_gives_images_and_ids(cub):
    pairs = ImageDataset(list(read_records(cub, lambda _: None)), 8, transform=lambda image: image.float())
    images, ids = next(iter(DataLoader(pairs, batch_size=2)))
    assert images.shape == (2, 3, 8, 8) and images.dtype == torch.float32
    assert list(ids) == [record.id for record in pairs.records]
    pairs.records[0].image.write_bytes(b"no image")
    with pytest.raises(ValueError, match="a_1.jpg: not an image"):
        pairs[0]


def test_images_and_ids_of_a_hugging_face_dataset(tmp_path):
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    rows = {
        "image": [Image.new("RGB", (12, 10), c) for c in ("red", "blue")],
        "text": ["A dog.", None],
        "key": ["x", "y"],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "key": datasets.Value("string")}
    )
    pairs = HubImageDataset(datasets.Dataset.from_dict(rows, features=features), 8, id="key")
    assert [pairs[i][1] for i in range(len(pairs))] == ["x", "y"]
    assert pairs[1][0][2].min() == 255 and pairs[1][0].shape == (3, 8, 8)
    assert [(record.id, record.text) for record in pairs.records()] == [("x", "A dog."), ("y", "")]
    with pytest.raises(ValueError, match="no column 'picture'"):
        HubImageDataset(pairs.rows, 8, image="picture")


def test_archives_are_shared_among_workers(tmp_path):
    files = [archive(tmp_path / f"{i}.tar", [(f"{i}a.png", encoded()), (f"{i}b.png", encoded())]) for i in range(3)]
    loader = DataLoader(TarImageDataset(files, 8), batch_size=None, num_workers=2)
    assert sorted(name for _, name in loader) == [f"{i}.tar/{i}{x}" for i in range(3) for x in "ab"]
    with pytest.raises(ValueError, match="files is empty"):
        TarImageDataset([], 8)


def test_dot_files_of_an_archive_are_skipped_and_a_nameless_member_is_rejected(tmp_path):
    members = [
        (".DS_Store", b"x"),
        ("./._0.png", b"x"),
        ("./0.png", encoded()),
        ("./0.txt", b"a dog"),
        ("__MACOSX/0.png", b"x"),
        (".git/1.png", encoded()),
        (".", encoded()),
        ("caf\udce9.png", encoded()),
        ("2.png", encoded()),
    ]
    (tmp_path / "._a.tar").write_bytes(b"x")
    archive(tmp_path / "a.tar", members)
    for place in (tmp_path, tmp_path / "a.tar"):
        rejected = []
        assert [(r.id, r.text) for r in read_records(place, rejected.append)] == [("0", "A dog."), ("2", "")]
        assert [(r.line, r.reason.split(": ")[1].split(";")[0]) for r in rejected] == [
            (7, "no usable name"),
            (8, "a name that is not UTF-8"),
        ]


def test_dot_files_of_a_folder_are_skipped(tmp_path):
    for name in ("0.png", "._0.png", "__MACOSX/0.png", ".thumbnails/0.png"):
        image(tmp_path / name)
    assert [r.id for r in read_records(tmp_path)] == ["0.png"]
    for name in ("CelebA-HQ-img/1.jpg", "CelebA-HQ-img/._1.jpg"):
        image(tmp_path / "c" / name)
    write(tmp_path / "c" / "celeba-caption" / "1.txt", "a face")
    assert [r.id for r in read_records(tmp_path / "c")] == ["1.jpg"]


def test_a_byte_order_mark_is_not_part_of_a_text(tmp_path):
    mark = "\ufeff"
    image(tmp_path / "p" / "a.png")
    rows = {"a.jsonl": '{"image": "a.png", "text": "A dog."}\n', "a.csv": "image,text\na.png,A dog.\n"}
    for name, text in rows.items():
        write(tmp_path / "p" / name, mark + text)
        assert [(r.id, r.text) for r in read_records(tmp_path / "p" / name)] == [("a.png", "A dog.")]
    write(tmp_path / "p" / "b.jsonl", f"{mark}\n{mark}{rows['a.jsonl']}")
    assert [(r.id, r.line) for r in read_records(tmp_path / "p" / "b.jsonl")] == [("a.png", 2)]
    write(tmp_path / "p" / "a.txt", mark + "a dog")
    assert [r.text for r in read_records(tmp_path / "p")] == ["A dog."]
    members = [
        ("a.png", encoded()),
        ("a.txt", (mark + "a dog").encode()),
        ("b.json", f'{mark}{{"text": "B."}}'.encode()),
    ]
    assert [r.text for r in read_records(archive(tmp_path / "a.tar", members))] == ["A dog.", "B."]


def test_a_byte_order_mark_in_published_layouts(cub, tmp_path):
    for name in ("images.txt", "train_test_split.txt", "bounding_boxes.txt"):
        write(cub / name, "\ufeff" + (cub / name).read_text())
    first = next(read_records(cub, lambda _: None))
    assert (first.id, first.split, len(first.boxes)) == ("001.Black_footed_Albatross/a_1.jpg", "train", 1)
    image(tmp_path / "coco" / "val" / "1.jpg")
    content = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}
    write(tmp_path / "coco/annotations/captions_val.json", "\ufeff" + json.dumps(content))
    assert [r.text for r in read_records(tmp_path / "coco")] == ["A dog."]


def test_published_layouts_may_be_linked_folders(cub, tmp_path):
    moved = tmp_path / "scratch"
    (cub / "images").rename(moved)
    os.symlink(moved, cub / "images")
    assert len(list(read_records(cub, lambda _: None))) == 2
    image(tmp_path / "elsewhere" / "1.jpg")
    content = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}
    write(tmp_path / "coco/annotations/captions_val.json", json.dumps(content))
    os.symlink(tmp_path / "elsewhere", tmp_path / "coco" / "val")
    assert [r.text for r in read_records(tmp_path / "coco")] == ["A dog."]
