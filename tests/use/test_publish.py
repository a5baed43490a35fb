"""A run saved and loaded back bit by bit, its model card, and what happens without a network."""

import json
import shutil

import pytest
import torch
from helpers.toy_corpus import Letters
from safetensors.torch import load_file

import tavq_plugin as tavq
from tavq_plugin.io.atomic import save_json
from tavq_plugin.training.build_host import build_host
from tavq_plugin.use.export_run import export_run


def states(run):
    modules = {"host": run.tokenizer.host, "hierarchy": run.tokenizer.hierarchy, "align": run.align}
    return {f"{part}.{name}": value for part, module in modules.items() for name, value in module.state_dict().items()}


def test_a_saved_run_loads_back_bit_by_bit(run, exported):
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md", "config.json", "host.safetensors", "tavq.safetensors",
    ]  # fmt: skip
    for again in (tavq.load(exported, encoder=Letters()), tavq.Run.from_pretrained(exported, encoder=Letters())):
        ours, theirs = states(run), states(again)
        assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert again.fingerprint == run.fingerprint and again.recipe == run.recipe
        assert (again.name, again.seed, dict(again.metrics)) == (run.name, run.seed, dict(run.metrics))
        image = run.corpus().images[20]
        mine, yours = run.ground(image, "a red circle"), again.ground(image, "a red circle")  # without the corpus
        assert all(torch.equal(a, b) for a, b in zip(mine.plans, yours.plans, strict=True))


def test_no_path_of_this_machine_is_published(exported, comparison):
    published = (exported / "config.json").read_text() + (exported / "README.md").read_text()
    assert str(comparison.parent) not in published


def test_the_card_states_data_protocol_metrics_with_chance_and_controls(comparison, tmp_path):
    folder = tmp_path / "out" / "tavq" / "seed0"
    shutil.copytree(comparison / "tavq" / "seed0", folder)
    save_json(folder / "measured.json", {"values": {"psnr": 20.25, "r10_3": 3.5}, "chance": {"r10_3": [1.0, 0.1]}})
    save_json(tmp_path / "out" / "compare.json", {"headline": "tavq says more than vqgan."})
    shutil.copytree(comparison / "data", tmp_path / "out" / "data")
    run = tavq.load(folder, encoder=Letters())
    card = str(run.generate_model_card())
    assert "license_name: to-be-filled-in" in card and "**To be filled in.**" in card
    assert "| psnr | dB | 20.25 | – |" in card and "| 3.5 | 1 ± 0.1 |" in card
    assert "tavq says more than vqgan." in card and "scenes, 16 training images" in card
    assert "license: apache-2.0" in str(run.generate_model_card(licence="apache-2.0"))
    assert "No control was found" not in card


def test_without_a_network_the_error_says_what_to_do(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"hf auth login.*hf upload owner/name FOLDER"):
        run.push_to_hub("owner/name")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "other"}, ValueError, "was not written by Run.save_pretrained"),
        ({"version": 99}, ValueError, "version 99 of the format.*pip install --upgrade"),
        ({"versions": {"tavq-plugin": "99.0"}}, ValueError, "written by tavq-plugin 99.0"),
        ({"recipe": {"host": {"target": "os.system"}}}, ValueError, "config.json"),
    ],
)
def test_a_published_folder_of_another_kind_is_refused(exported, tmp_path, change, error, message):
    shutil.copytree(exported, tmp_path / "hub")
    config = json.loads((exported / "config.json").read_text())
    (tmp_path / "hub" / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(error, match=message):
        tavq.load(tmp_path / "hub")


def test_the_hosts_own_checkpoint_loads_into_its_own_class(run, tmp_path):
    export_run(run, tmp_path, "host")
    about = json.loads((tmp_path / "host.json").read_text())
    host = build_host(run.recipe.host, 16)
    assert about["params"] == run.recipe.host.params and type(host).__qualname__ in about["class"]
    host.load_state_dict(torch.load(tmp_path / "host.ckpt", weights_only=True)["state_dict"], strict=True)
    image = torch.zeros(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(host.eval()(image)[0], run.tokenizer.host(image)[0])


def test_the_table_has_the_vector_of_every_token(run, tmp_path):
    export_run(run, tmp_path, "table")
    table, about = load_file(tmp_path / "table.safetensors"), json.loads((tmp_path / "table.json").read_text())
    assert about["tokens"] == about["mask"] == len(table["vectors"]) == len(table["text_vectors"]) == 96
    with torch.no_grad():
        codes = run.tokenizer.encode(torch.zeros(1, 3, 16, 16))
        for level in about["levels"]:
            found = codes.levels[level["level"] - 1]
            assert found.indices.shape[1:] == (level["height"], level["width"])
            rows = found.indices + level["offset"]
            torch.testing.assert_close(table["vectors"][rows].permute(0, 3, 1, 2), found.quantized)
            space = run.align.embed(found.quantized, level["level"] - 1)
            torch.testing.assert_close(table["text_vectors"][rows].flatten(1, 2), space)


def test_a_foreign_file_is_not_overwritten(run, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="README.md is in the way"):
        export_run(run, tmp_path)
    with pytest.raises(ValueError, match="no export as 'onnx': give one of hub, host, table"):
        export_run(run, tmp_path, "onnx")
