"""One comparison of two tiny runs, shared by all tests of a process; no test changes it."""

import pytest
from helpers.toy_corpus import Letters, corpus, recipe, save_as_scenes

from tavq_plugin.data.corpus import load_corpus
from tavq_plugin.training import fit


@pytest.fixture(scope="session")
def comparison(tmp_path_factory):
    pytest.importorskip("taming")
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("use") / "comparison"
    save_as_scenes(corpus(n=40, n_train=16), folder / "data", n_test=8)
    (folder / "shared.json").write_text("{}")
    for method in ("vqgan", "tavq"):
        fit(method, recipe(steps=2), load_corpus(folder / "data"), folder / method / "seed0")
    return folder


@pytest.fixture(scope="session")
def run(comparison):
    from tavq_plugin.use.run import load

    return load(comparison / "tavq" / "seed0", encoder=Letters(), device="cpu")


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "hub"
    run.save_pretrained(folder)
    return folder
