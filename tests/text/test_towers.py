"""Each family of text models is used as its authors use it (pooling, padding, limits); tiny random models."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import normalize

from tavq_plugin.text import TextEncoder

STRINGS = ["a red car", "the dog sleeps", "a", "two men in a blue boat . the sky"]
MEAN = ["bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "electra", "albert", "deberta-v2", "modernbert"]
MEAN += ["t5", "qwen3"]
FEATURES, POOLED = ("clip", "metaclip-2", "chinese-clip", "siglip", "siglip2"), ("clip-text", "siglip-text")
LIMITS = {"roberta": 23, "xlm-roberta": 23, "mpnet": 22}  # positions start after the padding's
FIXED = ("siglip", "siglip2", "siglip-text")


def one_embedding(folder, text, pooling):
    """One text, encoded as transformers' documentation does, without batches; normalised."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    fixed = {"padding": "max_length", "max_length": 24} if folder.name in FIXED else {}
    inputs = tokenizer([text], return_tensors="pt", **fixed)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        if pooling == "features":
            vector = model.get_text_features(**inputs).pooler_output[0]
        else:
            output = model(**inputs)
            states = output.last_hidden_state[0] if pooling != "projected" else None
            vector = {
                "mean": lambda: states.mean(0),
                "cls": lambda: states[0],
                "last": lambda: states[-1],
                "pooler": lambda: output.pooler_output[0],
                "projected": lambda: output.text_embeds[0],
            }[pooling]()
    return normalize(vector, dim=0)


@pytest.mark.parametrize(
    ("family", "pooling"),
    [(f, "mean") for f in MEAN]
    + [(f, "features") for f in FEATURES]
    + [(f, "pooler") for f in POOLED]
    + [("clip-projected", "projected")],
)
def test_a_family_is_used_as_its_authors_do(tiny_text, family, pooling):
    encoder = TextEncoder.from_pretrained(tiny_text(family))
    vectors = encoder.encode(STRINGS)
    assert vectors.shape == (4, encoder.dim)
    loop = torch.stack([one_embedding(tiny_text(family), text, pooling) for text in STRINGS])
    torch.testing.assert_close(vectors, loop, atol=2e-5, rtol=1e-4)
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3
    assert not any("vision" in name for name, _ in encoder.model.named_parameters())
    long = " ".join(["red car", "dog", "sky"] * 20)
    assert encoder.max_length == LIMITS.get(family, 24)
    assert torch.isfinite(encoder.encode([long])).all() and encoder.stats.split == 1


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("family", ["bert", "qwen3", "t5"])
def test_another_pooling_can_be_asked_for(tiny_text, family, pooling):
    encoder = TextEncoder.from_pretrained(tiny_text(family), pooling=pooling)
    loop = torch.stack([one_embedding(tiny_text(family), text, pooling) for text in STRINGS])
    torch.testing.assert_close(encoder.encode(STRINGS), loop, atol=2e-5, rtol=1e-4)


def test_a_shorter_limit_leaves_the_padding_of_siglip_alone(tiny_text):
    whole = TextEncoder.from_pretrained(tiny_text("siglip"))
    short = TextEncoder.from_pretrained(tiny_text("siglip"), max_length=8)
    assert torch.equal(whole.encode(["a red car"]), short.encode(["a red car"]))
    short.encode(["a red car on a blue boat in the sky"])
    assert (whole.stats.split, short.stats.split) == (0, 1)


def test_a_model_without_features_is_refused(tiny_text):
    with pytest.raises(ValueError, match="BertModel has no features to compare with images"):
        TextEncoder.from_pretrained(tiny_text("bert"), pooling="features")


@pytest.fixture
def sentence_folder(tiny_text, tmp_path):
    """A function that writes a BERT with the given parts in the layout of sentence-transformers."""

    def write(pooling, *, lower=False, dense=None, extra=(), prompt=None, inside="", limit=12):
        folder = tmp_path / "sentence"
        source = tiny_text("bert")
        (folder / inside).mkdir(parents=True)
        for file in source.iterdir():
            (folder / inside / file.name).write_bytes(file.read_bytes())
        kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), *extra, "Normalize"]
        paths = [inside] + [f"{i}_{kind}" for i, kind in enumerate(kinds[1:], 1)]
        modules = [{"path": p, "type": f"x.models.{kind}"} for p, kind in zip(paths, kinds, strict=True)]
        (folder / "modules.json").write_text(json.dumps(modules))
        for path in paths[1:]:
            (folder / path).mkdir()
        (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
        limits = {"max_seq_length": limit, "do_lower_case": lower}
        (folder / inside / "sentence_bert_config.json").write_text(json.dumps(limits))
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": prompt}))
        if dense:
            torch.manual_seed(1)
            layer = torch.nn.Linear(32, 6)
            save_file({f"linear.{k}": v for k, v in layer.state_dict().items()}, folder / "2_Dense/model.safetensors")
            config = {"in_features": 32, "out_features": 6, "bias": True, "activation_function": dense}
            (folder / "2_Dense/config.json").write_text(json.dumps(config))
            return folder, layer
        return folder

    return write


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
@pytest.mark.parametrize("inside", ["", "0_Transformer"])
def test_a_sentence_folder_says_how_it_pools(sentence_folder, tiny_text, settings, pooling, inside):
    encoder = TextEncoder.from_pretrained(sentence_folder(settings, inside=inside))
    assert (encoder.pooling, encoder.max_length) == (pooling, 12)
    loop = torch.stack([one_embedding(tiny_text("bert"), text, pooling) for text in STRINGS])
    torch.testing.assert_close(encoder.encode(STRINGS), loop, atol=2e-5, rtol=1e-4)


def test_a_limit_above_the_models_positions_is_lowered_to_them(sentence_folder):
    assert TextEncoder.from_pretrained(sentence_folder({"pooling_mode": "mean"}, limit=512)).max_length == 24


def test_the_folders_dense_layer_and_lower_case_are_used(sentence_folder):
    folder, layer = sentence_folder({"pooling_mode_mean_tokens": True}, lower=True, dense="torch.nn.Tanh")
    encoder, bare = TextEncoder.from_pretrained(folder), TextEncoder.from_pretrained(folder, pooling="mean")
    assert (encoder.dim, bare.dim, encoder.lower, bare.lower) == (6, 32, True, True)
    tokens = torch.tensor([bare.tokenizer("a red car")["input_ids"]])
    with torch.no_grad():
        loop = torch.tanh(layer(bare.model(tokens).last_hidden_state[0].mean(0)))
    torch.testing.assert_close(encoder.encode(["A Red CAR"])[0], normalize(loop, dim=0), atol=2e-5, rtol=1e-4)
    assert len({encoder.fingerprint.split(":")[1], bare.fingerprint.split(":")[1]}) == 2
    assert encoder.fingerprint.endswith(":lower")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pooling": {"pooling_mode_max_tokens": True}}, "pools by max_tokens"),
        ({"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}}, "by cls and mean"),
        ({"pooling": {}, "extra": ("WordWeights",)}, "uses WordWeights"),
        ({"pooling": {}, "prompt": "query"}, "a default prompt"),
        ({"pooling": {}, "dense": "torch.nn.Softsign"}, "uses Softsign"),
    ],
)
def test_unsupported_parts_are_named_and_can_be_left_out(sentence_folder, settings, words):
    folder = sentence_folder(**settings)
    folder = folder[0] if isinstance(folder, tuple) else folder
    with pytest.raises(ValueError, match=f"{words}.*give\\s+pooling="):
        TextEncoder.from_pretrained(folder)
    assert TextEncoder.from_pretrained(folder, pooling="mean").dim == 32
