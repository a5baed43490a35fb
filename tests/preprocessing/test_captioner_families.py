"""Models without a chat template are asked in their own way, as by transformers alone, or refused before they load."""

import json
from functools import cache

import pytest
import torch
from helpers.tiny_captioners import save_tiny_captioner
from PIL import Image

from tavq_plugin.preprocessing.caption import caption_images
from tavq_plugin.preprocessing.captioner_families import FAMILIES
from tavq_plugin.preprocessing.choose_captioner import choose_shard_captions
from tavq_plugin.preprocessing.local_captioner import LocalCaptioner

LENGTH = 12


@pytest.fixture(scope="module")
def tiny_captioner(tmp_path_factory):
    """A function: type → folder of a tiny model."""
    folder = tmp_path_factory.mktemp("captioners")
    return cache(lambda kind: save_tiny_captioner(kind, folder / kind))


@pytest.fixture
def images():
    return [Image.new("RGB", (40, 30 + i), colour) for i, colour in enumerate(("red", "blue", "white"))]


def as_transformers_does(kind, captioner, image):
    """Ids that the model's own example code gives for one image, as far as they are text."""
    processor, model = captioner.processor, captioner.model
    prompt = {"paligemma": "<image>describe en", "blip": None, "blip-2": None, "git": None}.get(kind, captioner.prompt)
    inputs = processor(images=image, return_tensors="pt", **({} if prompt is None else {"text": prompt}))
    inputs.pop("labels", None)
    tokens = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)[0]
    text = processor.decode(tokens, skip_special_tokens=True)
    asked = {"paligemma": "describe en", "kosmos-2": captioner.prompt}.get(kind, "")
    return text.split(asked, 1)[1].strip() if asked else text.strip()


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_text_is_that_of_transformers_own_call(kind, tiny_captioner, images):
    captioner = LocalCaptioner(str(tiny_captioner(kind)), max_new_tokens=LENGTH)
    with torch.no_grad():
        expected = [as_transformers_does(kind, captioner, image) for image in images]
    answers = captioner(images, [captioner.prompt] * 3)
    assert [answer.text for answer in answers] == expected and len(set(expected)) > 1
    assert all(1 <= answer.completion_tokens <= LENGTH for answer in answers)
    assert all((answer.flag == "cut") <= (answer.completion_tokens == LENGTH) for answer in answers)


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_text_does_not_depend_on_its_neighbours(kind, tiny_captioner, images):
    captioner = LocalCaptioner(str(tiny_captioner(kind)), max_new_tokens=LENGTH)
    prompts = ["a red car", "it is a dog on the house", "a"]
    alone = [captioner([image], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)]
    assert captioner(images, prompts) == alone


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_file_names_the_models_own_prompt(kind, tiny_captioner, pictures, tmp_path):
    captioner = LocalCaptioner(str(tiny_captioner(kind)), max_new_tokens=4)
    done = caption_images(pictures, tmp_path / "c.jsonl", captioner, batch=2, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert (done.written, done.rejected) == (5, 0) and done.completion_tokens > 0
    assert {row["prompt"] for row in rows} == {FAMILIES[kind].prompt}
    assert {row["settings"]["max_new_tokens"] for row in rows} == {4}


def test_prepare_knows_the_prompt_before_the_weights_load(tiny_captioner):
    options = {"revision": None, "max_new_tokens": 9, "temperature": 0.5}
    captions = choose_shard_captions(
        str(tiny_captioner("florence2")), None, 2, prompt=None, with_captions=False, image_size=64, **options
    )
    assert captions.prompt == "<MORE_DETAILED_CAPTION>"
    assert captions.settings == {"max_new_tokens": 9, "temperature": 0.5, "seed": 0, "image_size": 64}
    assert captions.settings == {**captions.load().settings, "image_size": 64}


def test_an_unknown_family_is_refused_by_name_before_its_weights_load(tiny_captioner, bert_folder):
    folder = tiny_captioner("pix2struct")
    assert not list(folder.glob("*.safetensors"))  # loading them would raise OSError
    with pytest.raises(ValueError, match="'pix2struct'. has no chat template, and is none of blip, .* paligemma"):
        LocalCaptioner(str(folder))
    with pytest.raises(ValueError, match="'bert'. has no chat template"):
        LocalCaptioner(str(bert_folder))
    with pytest.raises(ValueError, match="give --server"):
        choose_shard_captions(
            str(folder), None, 2, prompt=None, with_captions=False, revision=None, max_new_tokens=9, temperature=0.0
        )


def test_parameters_for_a_server_need_one(tiny_captioner):
    with pytest.raises(ValueError, match="--extra-body is for a server"):
        choose_shard_captions("m", None, 2, prompt=None, with_captions=False, extra_body={"top_p": 1}, revision=None)


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl"])
def test_a_text_that_reaches_its_longest_length_is_cut(kind, tiny_vlm, images):
    long = LocalCaptioner(str(tiny_vlm(kind)), max_new_tokens=400, temperature=1.5)
    whole = long(images, ["Describe the image ."] * 3)
    assert all(answer.flag is None and 0 < answer.completion_tokens < 400 for answer in whole)
    short = LocalCaptioner(str(tiny_vlm(kind)), max_new_tokens=2, temperature=1.5)
    assert {(a.flag, a.completion_tokens) for a in short(images, ["Describe the image ."] * 3)} == {("cut", 2)}
    assert all(answer.prompt_tokens > 4 for answer in whole)
