"""`tavq doctor` on a good set-up, and on broken ones, for which it names the fix."""

import json

import pytest
import torch
from helpers.strange_hosts import everything, is_equal
from helpers.tiny_hosts import Autoencoder
from typer.testing import CliRunner

import tavq_plugin as tavq
from tavq_plugin.cli.app import app
from tavq_plugin.cli.doctor import examine
from tavq_plugin.cli.doctor_report import Report, lines
from tavq_plugin.hosts.user_setup import load_setup

SETUP = """
import torch, tavq_plugin as tavq
from helpers.tiny_hosts import tiny

def good():
    host = tiny("taming-vq")
    optimizer = torch.optim.Adam(host.parameters())
    return host, optimizer, tavq.attach(host, optimizer, text_dim=6)

def without_heads():
    host = tiny("taming-vq")
    tokenizer = tavq.wrap(host)
    heads = [tokenizer.hierarchy, tavq.TextAlignment(tokenizer, 6)]
    return host, torch.optim.Adam(host.parameters()), heads

def half():
    host = tiny("taming-vq")
    return host, torch.optim.Adam(host.decoder.parameters())
"""


@pytest.fixture
def doctor(tmp_path):
    pytest.importorskip("taming")
    (tmp_path / "setup_host.py").write_text(SETUP)
    captions = tmp_path / "captions"
    (captions / "images").mkdir(parents=True)

    def run(name, *options, texts=("A red ball lies left of a blue box.", "")):
        for i in range(len(texts)):
            (captions / "images" / f"{i}.png").touch()
        rows = [{"image": f"{i}.png", "long_text": text} for i, text in enumerate(texts)]
        (captions / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        target = f"{tmp_path / 'setup_host.py'}:{name}"
        return CliRunner().invoke(app, ["doctor", target, "--captions", str(captions), *options])

    return run


def test_a_good_set_up_works(doctor):
    result = doctor("good", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0 and report["ok"] and report["problems"] == []
    assert report["adapter"].endswith("taming.TamingVQGAN") and report["codebook"] == [32, 8]
    assert [level[1] for level in report["levels"]] == [8, 4, 2]
    assert all(norm > 0 for row in report["gradient"].values() for norm in row.values())
    assert report["text"]["with_text"] == 1 and report["text"]["sentences_a_text"] == 1
    assert any("1 of 2 images have no text" in note for note in report["notes"])
    assert "a training step would work" in doctor("good").stdout


def test_a_tap_that_never_fires(doctor):
    result = doctor("good", "--taps", "encoder.down.0", "--taps", "encoder.down.1", "--json")
    (problem,) = json.loads(result.stdout)["problems"]
    assert result.exit_code == 1
    assert "never fired" in problem and "name a module inside it in taps=" in problem


def test_an_optimizer_that_misses_the_heads(doctor):
    result = doctor("without_heads", "--json")
    (problem,) = json.loads(result.stdout)["problems"]
    assert result.exit_code == 1 and "misses" in problem and "tavq.attach(host, optimizer)" in problem


def test_an_optimizer_that_misses_the_encoder(doctor):
    result = doctor("half", "--json")
    (problem,) = json.loads(result.stdout)["problems"]
    assert result.exit_code == 1 and "that the alignment reaches (encoder.conv_in.weight" in problem


def test_captions_that_are_missing(doctor, tmp_path):
    result = doctor("good", "--json", texts=("", ""))
    (problem,) = json.loads(result.stdout)["problems"]
    assert result.exit_code == 1 and "none of the 2 images" in problem and "captions.jsonl" in problem
    result = doctor("good", "--captions", str(tmp_path / "nowhere"))
    assert result.exit_code == 1 and "no captions: no folder" in result.stdout


def test_a_target_that_cannot_be_run_is_refused(doctor, tmp_path):
    for target, words in (("nothing", "give file.py:function"), (f"{tmp_path}/no.py:f", "no file")):
        result = CliRunner().invoke(app, ["doctor", target])
        assert result.exit_code == 2 and words in " ".join(result.stderr.split())


def test_an_error_prints_square_brackets_of_a_file_name(tmp_path):
    result = CliRunner().invoke(app, ["doctor", f"{tmp_path}/a[b]c[/red].py:f"], env={"COLUMNS": "1000"})
    assert result.exit_code == 2 and f"no file {tmp_path}/a[b]c[/red].py" in result.stderr


def test_a_report_says_that_a_codebook_is_not_explicit_and_counts_units():
    report = Report(
        host="my.Host", adapter="a.A", quantizer="vq (q.Q)", taps=["fine", "mid"], levels=[[2, 8, 8]],
        grad_to="encoder", text={"images": 2, "with_text": 1, "words_a_text": 6.5}, problems=["x: do y"],
    )  # fmt: skip
    text = "\n".join(lines(report))
    assert "codebook   not explicit\ngradient   to the encoder" in text and "grids      8×8 (example images)" in text
    assert "text       2 images, 1 with text, 6.5 words per text" in text
    assert text.endswith("PROBLEM    x: do y\na training step would NOT work")


def test_a_yaml_config_is_built(tmp_path):
    pytest.importorskip("yaml")
    text = "model:\n  target: torch.nn.Linear\n  params: {in_features: 1, out_features: 2}\n"
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8-sig")
    host, optimizer, align = load_setup(str(tmp_path / "c.yaml"))
    assert isinstance(host, torch.nn.Linear) and optimizer is None and align is None
    report = examine(host)
    assert not report.ok and "no adapter knows" in report.problems[0]


def test_a_yaml_config_of_taming_is_built(tmp_path):
    pytest.importorskip("yaml")
    pytest.importorskip("taming")
    ddconfig = (
        "{double_z: false, z_channels: 8, resolution: 32, in_channels: 3, out_ch: 3, ch: 32, ch_mult: [1, 2, 2], "
    )
    ddconfig += "num_res_blocks: 1, attn_resolutions: [], dropout: 0.0}"
    (tmp_path / "c.yaml").write_text(
        "model:\n  target: taming.models.vqgan.VQModel\n  params:\n    n_embed: 16\n    embed_dim: 8\n"
        f"    ddconfig: {ddconfig}\n    lossconfig: {{target: torch.nn.Identity}}\n"
    )
    host, _, _ = load_setup(str(tmp_path / "c.yaml"))
    report = examine(host)
    assert report.ok and report.levels == [[2, 8, 8], [2, 4, 4], [2, 2, 2]]  # grids of the example images


def test_an_ema_codebook_is_a_note_not_a_problem():
    package = pytest.importorskip("vector_quantize_pytorch")
    host = Autoencoder(package.VectorQuantize(dim=8, codebook_size=16), tokens=True)
    report = examine(host, torch.optim.Adam(host.parameters()))
    assert report.ok and report.grad_to == "encoder" and any("EMA" in note for note in report.notes)
    assert not any(module._forward_hooks for module in host.modules()) and tavq.wrap(host)


STRANGE = """
import torch, tavq_plugin as tavq
from helpers.strange_hosts import Host, Quantizer, parse

print("a script prints")

class Prints(Host):
    def forward(self, images):
        print("a host prints")
        return super().forward(images)

def whole():
    host = Prints(Quantizer(transposed=True))
    return host, torch.optim.Adam(host.parameters()), {"quantizer": "vq", "parse": parse}

def bare():
    return Prints(Quantizer())

def wrong_parse(z, output):
    return tavq.Quantized(output[0], output[1].int(), output[2])

def attached():
    host = Prints(Quantizer())
    optimizer = torch.optim.Adam(host.parameters())
    return host, optimizer, tavq.attach(host, optimizer, text_dim=6, quantizer="vq", parse=parse)

def fails():
    return {}["my key"]
"""


@pytest.fixture
def strange(tmp_path):
    (tmp_path / "strange_setup.py").write_text(STRANGE)

    def run(name, *options):
        return CliRunner().invoke(app, ["doctor", f"{tmp_path / 'strange_setup.py'}:{name}", *options])

    return run


@pytest.mark.parametrize("name", ["whole", "attached"])
def test_doctor_takes_what_wrap_takes_from_the_users_function(strange, name):
    result = strange(name, "--json")
    report = json.loads(result.stdout)  # and nothing else, though script and host print
    assert result.exit_code == 0 and report["ok"] and report["quantizer"].startswith("vq ")
    assert report["image"] == [64, 64] and [level[1] for level in report["levels"]] == [32, 16, 8]
    assert report["table"] == ("table, transposed" if name == "whole" else "")


def test_doctor_prints_grids_at_the_users_resolution(strange):
    result = strange("bare", "--quantizer", "vq", "--parse", "parse", "--resolution", "128")
    assert result.exit_code == 0 and "grids      64×64, 32×32, 16×16 (images of 128×128 pixels)" in result.stdout
    assert "gradient   to the encoder and the codebook" in result.stdout


def test_doctor_refuses_by_the_same_verification(strange):
    result = strange("bare", "--quantizer", "vq", "--parse", "wrong_parse")
    (problem,) = [line for line in result.stdout.splitlines() if line.startswith("PROBLEM")]
    assert result.exit_code == 1 and "indices are int32" in problem and "indices.long()" in problem


def test_a_host_that_cannot_be_built_exits_with_2(strange):
    result = strange("fails", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 2 and not report["ok"] and "raised KeyError: 'my key'" in report["not_built"]
    assert "Traceback" not in result.output
    result = strange("fails", "--debug")
    assert result.exit_code == 2 and 'return {}["my key"]' in result.stderr and "Traceback" not in result.stdout
    result = strange("bare", "--parse", "no_such")
    assert result.exit_code == 2 and "has no function 'no_such'" in result.stderr


def test_doctor_leaves_the_host_as_it_was():
    package = pytest.importorskip("vector_quantize_pytorch")
    host = Autoencoder(package.VectorQuantize(dim=8, codebook_size=16), tokens=True)
    before = everything(host)
    assert examine(tavq.wrap(host)).ok
    assert is_equal(everything(host), before)
