"""Three splits that share no picture: by name or drawn, with copies and bursts on one side."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.toy_corpus import corpus, save_as_scenes

from tavq_plugin.data.corpus import load_corpus, load_or_build_corpus
from tavq_plugin.data.leakage import burst_members, dhash, find_leakage
from tavq_plugin.data.records import Record
from tavq_plugin.data.splits import split_records
from tavq_plugin.data.synthetic_scenes import scenes, write_scenes

LONG = "a brown dog jumps over an old wooden fence beside two tall trees while children watch number"


def records(n: int, *, split: str | None = None, source: str = "a", first: int = 0) -> list[Record]:
    return [Record(f"{source}{i}", Path(f"{i}.png"), "", split, source) for i in range(first, first + n)]


def test_unnamed_splits_are_drawn_and_do_not_depend_on_how_many_are_asked_for():
    rows = records(40)
    splits = split_records(rows, seed=1)
    assert [len(split) for split in splits] == [27, 6, 7]
    assert sorted(r.id for split in splits for r in split) == sorted(r.id for r in rows)
    fewer = split_records(rows, seed=1, n_train=5, n_eval=2)
    assert [len(split) for split in fewer] == [5, 2, 7] and fewer.test == splits.test
    assert {r.id for r in fewer.tune} <= {r.id for r in splits.tune}
    assert split_records(rows, seed=2).test != splits.test


def test_named_validation_images_tune_and_the_test_split_comes_from_the_training_images():
    rows = [*records(6000, split="train"), *records(500, split="val", first=6000)]
    rows += records(9, split="train", source="b")
    splits = split_records(rows)
    assert [len(split) for split in splits] == [5000, 500, 1000]
    assert {r.source for r in splits.train} == {"a"} and {r.split for r in splits.test} == {"train"}
    assert {r.split for r in splits.tune} == {"val"}
    assert not {r.id for r in splits.train} & {r.id for r in splits.test}


def test_a_named_test_split_is_kept_whole_and_the_tune_split_is_drawn():
    rows = [*records(100, split="train"), *records(7, split="test", first=100)]
    splits = split_records(rows, n_eval=4)
    assert [r.id for r in splits.test] == [f"a{i}" for i in range(100, 107)]
    assert (len(splits.train), len(splits.tune)) == (85, 4)


def test_records_that_are_all_held_out_are_divided_anew():
    assert [len(split) for split in split_records(records(40, split="val"))] == [27, 6, 7]


def test_leaks_are_found_by_file_and_by_perceptual_hash(tmp_path):
    images = scenes(6, resolution=32).images
    files = [tmp_path / f"{i}" for i in range(4)]
    for i, path in enumerate(files):
        path.write_bytes(b"same" if i in (1, 2) else bytes([i]))
    again = torch.cat([images[4:5], images[0:1] // 2 + 60, images[5:6]])  # the second is a paler copy
    leaks = find_leakage(images[:4], again, files[:2], [files[2], files[3], tmp_path / "0"])
    assert leaks.same_file == (0, 2) and leaks.same_hash == (1,)
    assert len(set(dhash(images).tolist())) == 6


def test_a_burst_is_known_by_its_pictures_or_its_texts_and_short_or_common_words_are_no_evidence():
    noise = torch.randint(256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    again = noise[:1].float().mul(0.8).add(20).to(torch.uint8)  # the same picture, paler
    texts = [f"{i} " + " ".join(f"w{i}x{j}" for j in range(12)) for i in range(4)] + [LONG]
    assert burst_members(noise, texts, again, ["other words"]) == {0}
    assert burst_members(noise, texts, noise[:0], []) == set()
    blank = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    filler = [" ".join(f"f{i}x{j}" for j in range(12)) for i in range(20)]
    others = torch.cat([blank, blank.expand(20, -1, -1, -1)])
    assert burst_members(noise, texts, others, [LONG.replace("number", "many"), *filler]) == {4}
    same_class = ["a photo of a dog"] * 5
    assert burst_members(noise, same_class, others, ["a photo of a dog", *filler]) == set()
    assert burst_members(torch.cat([blank, blank]), ["", ""], blank, [""]) == set()


def test_held_out_copies_and_bursts_are_left_out_and_counted(tmp_path):
    write_scenes(tmp_path / "pack", 40, resolution=32)
    names = sorted((tmp_path / "pack" / "images").iterdir())
    shutil.copy(names[0], names[-1])  # an image to tune on becomes one of training
    said = []
    built, about = load_or_build_corpus(
        tmp_path / "data", tmp_path / "pack", 16, n_train=50, n_eval=50, tell=said.append
    )
    assert built.split == "tune" and about["n_eval"] == len(built.held_out_rows) and about["n_train"] == built.n_train
    left_out = about["left_out"]
    assert left_out["held-out images whose file is also in the training split"] == 1
    assert about["n_train"] + about["n_eval"] + about["n_test"] + sum(left_out.values()) == 40
    assert "left out 1: held-out images whose file is also in the training split" in " ".join(said)


def test_only_the_test_split_reads_the_test_images(tmp_path):
    write_scenes(tmp_path / "pack", 60, resolution=32)
    tune, about = load_or_build_corpus(
        tmp_path / "data", tmp_path / "pack", 16, n_train=50, n_eval=50, tell=lambda said: None
    )
    test = load_corpus(tmp_path / "data", split="test")
    n = tune.n_train
    assert test.split == "test" and test.n_train == n and len(test.held_out_rows) == about["n_test"] == 8
    assert torch.equal(test.images[:n], tune.images[:n]) and list(test.texts[:n]) == list(tune.texts[:n])
    seen, unseen = ({image.numpy().tobytes() for image in side.images[n:]} for side in (tune, test))
    assert not seen & unseen and set(tune.texts).isdisjoint(test.texts[n:])
    assert test.store.units(n, "word") and len(test.boxes) == len(test.images) and test.boxes[n]
    (tmp_path / "data" / "test.safetensors").unlink()  # what trains and tunes never opens it
    assert torch.equal(load_corpus(tmp_path / "data").images, tune.images)


def test_a_corpus_of_an_earlier_release_has_no_test_split(tmp_path):
    save_as_scenes(corpus(), tmp_path / "data")
    assert load_corpus(tmp_path / "data").split == "tune"
    with pytest.raises(ValueError, match="no test split, because it was made by an earlier release"):
        load_corpus(tmp_path / "data", split="test")
