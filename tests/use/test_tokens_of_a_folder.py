"""Images to files of tokens and back: every image counted, resumable, and nothing of another run decoded."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers.toy_corpus import Letters
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tavq_plugin as tavq
from tavq_plugin.pixels import to_float, to_uint8
from tavq_plugin.use.decode_folder import decode_folder
from tavq_plugin.use.encode_folder import EncodeSettings, encode_folder
from tavq_plugin.use.token_files import read_tokens_file

FORMATS = pytest.mark.parametrize("ending", ["safetensors", "parquet"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven images, two of another size, one in a subfolder, and one broken file."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    (folder / "more").mkdir()
    for i in range(6):
        pixels = draw.integers(0, 255, (16, 16 + 8 * (i % 3 == 0), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / "more" / "1.png")
    (folder / "3b.png").write_bytes(b"no image")
    return folder


def settings(ending="safetensors", **changes):
    return EncodeSettings(**{"format": ending, "shard_size": 3, "batch_size": 2, **changes})


@FORMATS
def test_every_image_comes_out_as_tokens_or_as_a_rejection(run, photos, tmp_path, ending):
    told = []
    done = encode_folder(run, photos, tmp_path / "tokens", settings(ending), tell=told.append)
    assert (done.images, done.encoded, len(done.rejected), done.resized) == (8, 7, 1, 2)
    assert "2 of 7 images had another size than 16 × 16" in told[0]
    listed = (tmp_path / "tokens" / "rejected.jsonl").read_text().splitlines()
    assert len(listed) == 1 and "3b.png" in json.loads(listed[0])["file"]
    files = [read_tokens_file(tmp_path / "tokens" / name) for name in done.files]
    assert [name for file in files for name in file.ids] == [*(f"{i}.png" for i in range(6)), "more/1.png"]
    for file in files:
        assert file.about["fingerprint"] == run.fingerprint
        for name, *indices in zip(file.ids, *file.indices.values(), strict=True):
            with torch.no_grad():
                codes = run.tokenizer.encode(to_float(run.image(photos / name)[None]))
            assert all(torch.equal(a, b.indices[0]) for a, b in zip(indices, codes.levels, strict=True))
    number = decode_folder(run, tmp_path / "tokens", tmp_path / "decoded")
    assert number == 7 and len(list((tmp_path / "decoded").glob("*.png"))) == 7
    image = to_float(run.image(photos / "more" / "1.png")[None])
    made = np.array(Image.open(tmp_path / "decoded" / "more%2F1.png.png"))
    expected = to_uint8(run.tokenizer.host(image)[0].detach())[0].permute(1, 2, 0).numpy()
    assert np.abs(made.astype(int) - expected).max() <= 1


def test_a_stopped_encoding_resumes_and_keeps_its_files(run, photos, tmp_path):
    whole = encode_folder(run, photos, tmp_path / "whole", settings())

    def stop(done):
        if done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_folder(run, photos, tmp_path / "tokens", settings(), progress=stop)
    with pytest.raises(ValueError, match="is not finished: give the same tavq encode command again"):
        decode_folder(run, tmp_path / "tokens", tmp_path / "decoded")
    first = (tmp_path / "tokens" / whole.files[0]).stat().st_mtime_ns
    again = encode_folder(run, photos, tmp_path / "tokens", settings())
    assert again.kept == 3 and (again.images, again.encoded, again.rejected) == (8, 7, whole.rejected)
    assert (tmp_path / "tokens" / whole.files[0]).stat().st_mtime_ns == first
    for name in whole.files:
        ours, theirs = (load_file(tmp_path / place / name) for place in ("whole", "tokens"))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with pytest.raises(ValueError, match="other images than come now"):
        encode_folder(run, photos / "more", tmp_path / "tokens", settings())
    with pytest.raises(ValueError, match="holds tokens with shard_size=3, and this call asks for 4"):
        encode_folder(run, photos, tmp_path / "tokens", settings(shard_size=4))


def test_the_level_of_the_decoder_alone_decodes_the_same(run, photos, tmp_path):
    encode_folder(run, photos, tmp_path / "all", settings())
    encode_folder(run, photos, tmp_path / "final", settings(levels="final"))
    both = [read_tokens_file(tmp_path / name / "tokens-00000.safetensors").indices for name in ("all", "final")]
    assert list(both[0]) == [1, 2, 3] and list(both[1]) == [3] and torch.equal(both[0][3], both[1][3])
    assert decode_folder(run, tmp_path / "final", tmp_path / "decoded") == 7


def test_tokens_of_another_codebook_or_out_of_range_are_refused(run, comparison, photos, tmp_path):
    encode_folder(run, photos, tmp_path / "tokens", settings())
    other = tavq.load(comparison / "vqgan" / "seed0", encoder=Letters())
    with pytest.raises(ValueError, match=r"was encoded by another tokenizer \(tavq, fingerprint"):
        decode_folder(other, tmp_path / "tokens", tmp_path / "decoded")
    path = tmp_path / "tokens" / "tokens-00001.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["level_3"][0, 0, 0] = 32
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match="the tokens of level 3 run from 0 to 32|run from .* to 32, and 0 to 31"):
        decode_folder(run, tmp_path / "tokens", tmp_path / "decoded")
    assert not (tmp_path / "decoded").exists()  # refused before the first image
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as tokens"):
        decode_folder(run, tmp_path / "tokens", tmp_path / "decoded")


def test_what_is_no_folder_of_images_or_tokens_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image of .* could be encoded"):
        encode_folder(run, tmp_path / "empty", tmp_path / "tokens")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        encode_folder(run, tmp_path / "nowhere", tmp_path / "tokens")
    with pytest.raises(ValueError, match="has no tokens.json"):
        decode_folder(run, tmp_path / "empty", tmp_path / "decoded")
    with pytest.raises(ValueError, match="give safetensors or parquet"):
        EncodeSettings(format="npz")


def test_an_image_whose_id_comes_twice_is_not_lost_in_silence(run, photos, tmp_path):
    for name in ("a", "b"):
        shutil.copy(photos / "1.png", tmp_path / f"{name}.png")
    rows = [{"id": "same", "image": "a.png", "text": "x"}, {"id": "other", "image": "b.png", "text": "x"}]
    rows += [{"id": "same", "image": "b.png", "text": "y"}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = encode_folder(run, tmp_path, tmp_path / "tokens", settings())
    assert done.images == done.encoded + len(done.rejected)
