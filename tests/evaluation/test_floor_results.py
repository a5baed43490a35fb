"""Floors kept in a comparison's folder: read again for other seeds, and never written over a file of others."""

import pytest
import torch
from helpers.toy_corpus import corpus

from tavq_plugin.evaluation.floors.floor_results import floor_results, refuse_foreign_floors
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.evaluation.text_targets import TextTargets

SETTINGS = EvaluationSettings(words=5, transport_images=4, judges=(), attentive=False, permutations=2)


@pytest.fixture(scope="module")
def targets():
    return TextTargets(corpus(n=40, n_train=24), SETTINGS)


def measured(targets, folder, seeds, **changed):
    judges = Judges(None, targets.corpus.images[24:], names=())
    settings = dict(codes=4, grid=2, untrained=None, weights=None, settings={"of": "test"}) | changed
    return floor_results(targets, judges, folder, seeds=seeds, **settings)


def test_floors_without_a_seed_are_those_of_the_first_seed_asked_for(targets, tmp_path):
    both = measured(targets, tmp_path, (0, 1))
    assert {name: sorted(runs) for name, runs in both.runs.items()} == {
        "mean-colour": [0], "thumbnail": [0], "patch-kmeans": [0, 1],
    }  # fmt: skip
    alone = measured(targets, tmp_path, (1,))
    assert {name: sorted(runs) for name, runs in alone.runs.items()} == {
        "mean-colour": [1], "thumbnail": [1], "patch-kmeans": [1],
    }  # fmt: skip
    turned = measured(targets, tmp_path, (1, 0))
    assert {name: sorted(runs) for name, runs in turned.runs.items()} == {
        "mean-colour": [1], "thumbnail": [1], "patch-kmeans": [0, 1],
    }  # fmt: skip
    assert turned.runs["patch-kmeans"][0].values == both.runs["patch-kmeans"][0].values
    assert list(turned.titles) and torch.equal(
        turned.runs["thumbnail"][1].per_image["psnr"], both.runs["thumbnail"][0].per_image["psnr"]
    )


def test_a_foreign_file_among_floors_is_never_overwritten(targets, tmp_path):
    for name in ("seed0.json", "patch-kmeans/seed0/measured.json"):
        path = tmp_path / name.replace("/", "-") / name
        path.parent.mkdir(parents=True)
        path.write_text('{"years": 4}')
        folder = tmp_path / name.replace("/", "-")
        with pytest.raises(FileExistsError, match="is in the way"):
            refuse_foreign_floors(folder, (0,))
        with pytest.raises(FileExistsError, match="is in the way"):
            measured(targets, folder, (0,))
        assert path.read_text() == '{"years": 4}'
    measured(targets, tmp_path / "ours", (0,))
    refuse_foreign_floors(tmp_path / "ours", (0,))
