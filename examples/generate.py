"""Generate from the codes of a tokenizer in four ways: from nothing, a text, a label map, and around a hole.

It does what `tavq task` does for one run, without the measuring; it runs offline on a CPU. So few steps show how the
parts are called, and give no pictures worth looking at.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

import tavq_plugin as tavq
from tavq_plugin.evaluation.sources.finished_runs import Loaded
from tavq_plugin.evaluation.sources.read_sources import UserTokenizer
from tavq_plugin.tasks.completion import complete, drawn_holes
from tavq_plugin.tasks.decode_tokens import decode_tokens
from tavq_plugin.tasks.encode_runs import encode_run
from tavq_plugin.tasks.fit_model import FitSettings
from tavq_plugin.tasks.sampling import SamplingSettings
from tavq_plugin.tasks.semantic_synthesis import from_labels, label_model
from tavq_plugin.tasks.task import ModelSettings, TaskSettings, Workplace
from tavq_plugin.tasks.task_data import drawn_data
from tavq_plugin.tasks.text_condition import caption_store
from tavq_plugin.tasks.text_to_image import first_captions, from_prompts, text_model
from tavq_plugin.tasks.unconditional import sampled, unconditional_model
from tavq_plugin.text.encoder import offline_encoder
from tavq_plugin.training.build_host import small_vqgan

PROMPTS = ["A red circle and a blue star on a grey background.", "A large green cross at the centre."]


def main(steps: int = 20) -> dict[str, Tensor]:
    """Train one small model for each way, and sample; way → n 3 16 16 uint8."""
    data = drawn_data(resolution=16, n_train=24, n_eval=4)
    torch.manual_seed(0)
    tokenizer = tavq.wrap(small_vqgan(16)).eval()  # stands for your own VQGAN and its weights
    settings = TaskSettings(ModelSettings(width=64, layers=2), FitSettings(steps=steps, batch_size=8, warmup=2))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = encode_run(UserTokenizer("mine", "my VQGAN", Loaded(tokenizer, None, False)), data, folder / "tokens")
        at = Workplace(folder / "models", folder / "shared", offline_encoder())

        model = unconditional_model(run, settings, at)
        made = {"nothing": decode_tokens(run, sampled(model, 4, SamplingSettings(steps=8, top_p=0.95)))}

        images = data.held_out.images
        holes = drawn_holes(len(images), images.shape[-1], seed=0)
        made["a hole"] = complete(run, model, images, run.held_out.tokens, holes)
        outside = ~holes[:, None].expand_as(images)
        assert torch.equal(made["a hole"][outside], images[outside])  # what was given stays exact

        texts = caption_store(first_captions(data.train), at.encoder, folder / "texts", n_train=len(data.train))
        model = text_model(run, texts, settings, at, rows=torch.arange(len(data.train)))
        guided = SamplingSettings(steps=8, guidance=2.5)
        made["a text"] = from_prompts(run, model, PROMPTS, at.encoder, texts, guided)

        assert data.train.labels is not None and data.held_out.labels is not None
        model = label_model(run, data, data.train.labels, settings, at)
        made["a label map"] = decode_tokens(run, from_labels(model, data.held_out.labels))
    for name, pictures in made.items():
        print(f"from {name}: {len(pictures)} images of {pictures.shape[-2]} × {pictures.shape[-1]} pixels")
    return made


if __name__ == "__main__":
    main()
