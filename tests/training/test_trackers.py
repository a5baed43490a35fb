"""TensorBoard and Weights & Biases get the history's figures and pictures, and training stays as it is."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.toy_corpus import AVERAGED, corpus, recipe, weights
from PIL import Image

from tavq_plugin.pixels import to_float, to_uint8
from tavq_plugin.training import fit
from tavq_plugin.training.tracked_pictures import pictures_due

pytest.importorskip("taming")
pytest.importorskip("accelerate")
NAME = "original, reconstruction, codes of levels 1 to 3"
OPTIONS = {"vqct": {"threshold": 1}}


def trained(folder, tracker, method="tavq", **changes):
    settings = {"steps": 3, "batch_size": 4, "start": {"settle_share": 0.34, "revive_every": 2}}
    settings |= {"tracker": tracker, "options": OPTIONS.get(method, {})}
    return fit(method, recipe(**settings | changes), corpus(), folder, allow=["helpers"])


def learnt(run):
    rows = [{name: row[name] for name in row if name not in ("seconds", "plugin_share")} for row in run.history]
    return weights(run), rows


def assert_same(one, other):
    (ours, our_rows), (theirs, their_rows) = learnt(one), learnt(other)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert our_rows == their_rows


def rows_of(sheet):
    """The tiles of 16 px of two images, one row per image."""
    assert sheet.shape == (2 * 16, 5 * 16, 3)
    return [np.split(row, 5, axis=1) for row in np.split(sheet, 2)]


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("tavq", {"ema": 0.5}),
        ("cvq", {}),
        ("vqct", {}),
        ("vqgan", {"host": AVERAGED, "start": {}}),
        pytest.param("vqgan", {"compile": "aot_eager"}, marks=pytest.mark.slow),
    ],
    ids=["tavq", "cvq", "vqct", "EMA codebook", "compiled"],
)
def test_a_tracker_changes_no_bit_of_what_is_learnt(tmp_path, method, changes):
    if "host" in changes:
        pytest.importorskip("vector_quantize_pytorch")
    changes = changes | {"diagnose_every": 1}
    runs = [trained(tmp_path / tracker, tracker, method, **changes) for tracker in ("tensorboard", "none")]
    assert_same(*runs)
    assert (tmp_path / "tensorboard" / "logs").is_dir() and not (tmp_path / "none" / "logs").exists()


def test_tensorboard_shows_held_out_images_and_what_the_run_makes_of_them(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained(tmp_path, "tensorboard", diagnose_every=1)
    logged = EventAccumulator(str(tmp_path / "logs"), size_guidance={"images": 0}).Reload()
    assert {name for name in run.history[-1] if name != "step"} <= set(logged.Tags()["scalars"])
    assert [event.value for event in logged.Scalars("pixel")] == pytest.approx([row["pixel"] for row in run.history])
    held_out = corpus().images[8:]
    tags = logged.Tags()["images"]
    assert len(tags) == 1 and tags[0].startswith(NAME)
    events = logged.Images(tags[0])
    assert [event.step for event in events] == [2, 3]  # the first step settles, and has no codes
    sheet = np.array(Image.open(io.BytesIO(events[-1].encoded_image_string)))
    with torch.no_grad():
        (reconstruction, _), codes = run.tokenizer(to_float(held_out))
    for i, (original, made, *maps) in enumerate(rows_of(sheet)):
        assert np.array_equal(original, held_out[i].permute(1, 2, 0))
        assert np.array_equal(made, to_uint8(reconstruction[i]).permute(1, 2, 0))
        for shown, level in zip(maps, codes.levels, strict=True):
            assert len(np.unique(shown.reshape(-1, 3), axis=0)) == len(level.indices[i].unique())


def test_pictures_come_about_twenty_times_in_a_run_and_go_on_after_a_resume():
    phase = SimpleNamespace(first=0, last=1000)
    rows = [{"step": step} | ({"effective_rank_1": 1.0} if step % 10 == 9 else {}) for step in range(1000)]
    due = [n for n in range(1, 1001) if pictures_due(SimpleNamespace(number=n, phase=phase), rows[:n])]
    assert due == [10, *range(60, 1000, 50), 1000]  # a row of a step counts from 0


def test_without_diagnostics_there_are_no_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(tmp_path, "tensorboard", "vqgan", diagnose_every=0)
    tags = EventAccumulator(str(tmp_path / "logs")).Reload().Tags()
    assert tags["images"] == [] and "pixel" in tags["scalars"]


@pytest.fixture
def no_account(tmp_path, monkeypatch):
    """No login of the user's is read, and none of their folders written."""
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # its service reads the environment once
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.chdir(here)
    yield
    wandb.teardown()


@pytest.mark.usefixtures("no_account")
def test_weights_and_biases_gets_the_same_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = {"method": "vqgan", "diagnose_every": 1}
    assert_same(trained(tmp_path / "run", "wandb", **settings), trained(tmp_path / "none", "none", **settings))
    (folder,) = (tmp_path / "run" / "logs" / "wandb").glob("offline-run-*")
    sheets = sorted(folder.rglob("*.png"))
    assert len(sheets) == 2  # at two of the three steps
    for sheet in sheets:
        for (original, *_), image in zip(rows_of(np.array(Image.open(sheet))), corpus().images[8:], strict=True):
            assert np.array_equal(original, image.permute(1, 2, 0))
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.usefixtures("no_account")
def test_weights_and_biases_without_a_login_is_refused_with_the_mend(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(OSError, match=r"could not start .*wandb login.*WANDB_MODE=offline"):
        trained(tmp_path / "run", "wandb", "vqgan")
    assert not (tmp_path / "run" / "history.json").exists()
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["tracker"] == "wandb"
