"""`extend`: more steps for a finished run, which stays loadable until they are done."""

import json
import math
import shutil

import pytest
import torch
from helpers.toy_corpus import corpus, recipe, stopped, weights
from safetensors.torch import load_file

from tavq_plugin.evaluation.sources.finished_runs import runs_in
from tavq_plugin.methods import METHODS
from tavq_plugin.training import extend, fit
from tavq_plugin.training.checkpoint import Checkpoints
from tavq_plugin.training.recipe import OptimizerRecipe
from tavq_plugin.training.replace_finished import replace_finished
from tavq_plugin.training.schedule import Phase

pytest.importorskip("taming")
pytest.importorskip("accelerate")
SETTINGS = dict(
    steps=4, batch_size=4, checkpoint_every=2, ema=0.5, adversarial={"start": 3, "width": 4, "layers": 1},
    start={"settle_share": 0.25, "revive_every": 2, "revive_below": 0.9},
    optimizer={"learning_rate": 1e-3, "warmup": 2, "schedule": "cosine"},
)  # fmt: skip


def never(done, row):
    raise AssertionError("trained")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def stop_at(step):
    def stop(done, row):
        if done == step:
            raise KeyboardInterrupt

    return stop


@pytest.fixture
def run(tmp_path):
    """A finished run of four steps."""
    fit("noisy", recipe(**SETTINGS), corpus(), tmp_path / "run")
    return tmp_path / "run"


def test_an_extension_starts_from_the_finished_weights_with_a_schedule_of_its_own(run):
    before = load_file(run / "host.safetensors")
    seen, said = [], []
    still = fit("vqgan", recipe(**{**SETTINGS, "optimizer": {"learning_rate": 1e-12}}), corpus(), run.parent / "still")
    moved = extend(run.parent / "still", 5, corpus())
    torch.testing.assert_close(moved.tokenizer.host.state_dict(), still.tokenizer.host.state_dict())
    extended = extend(run, 8, corpus(), progress=lambda done, row: seen.append(done), tell=said.append)
    assert seen == [5, 6, 7, 8] and [row["step"] for row in extended.history] == list(range(8))
    assert "quantizer" in extended.history[4] and "quantizer" not in extended.history[0]
    assert said == [
        "trains steps 5 to 8 of noisy, from the finished weights: a new Adam, a new discriminator; the learning rate "
        "rises to 0.001 over 2 steps and falls along half a cosine to 0 at step 8; the method's schedule (λ or ρ) "
        "starts anew and covers these steps"
    ]
    after = load_file(run / "host.safetensors")
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert extended.method.calls == 3 + 4  # the method's own state goes on; one step settled
    settings = json.loads((run / "settings.json").read_text())
    assert (settings["steps"], settings["phases"]) == (8, [4, 8])
    assert not (run / "checkpoints").exists() and not list(run.glob(".final*"))


def test_the_schedules_cover_the_new_steps_and_the_batches_go_on():
    phase, settings = Phase.extension(10, 20), OptimizerRecipe(learning_rate=1.0, warmup=2)
    rates = [phase.learning_rate(settings, number) for number in range(10, 20)]
    assert rates[0] == 0.5 and rates[5] == pytest.approx(0.5)
    assert rates[9] == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))
    assert rates == [Phase(0, 10, 0).learning_rate(settings, number) for number in range(10)]
    assert not phase.settles and (phase.steps, phase.first_coded) == (10, 10)


@pytest.mark.parametrize("after", [5, 7])
def test_an_interrupted_extension_resumes_and_equals_an_uninterrupted_one(run, tmp_path, after):
    fit("noisy", recipe(**SETTINGS), corpus(), tmp_path / "other")
    whole = extend(tmp_path / "other", 8, corpus())
    before, said = files(run), []
    with pytest.raises(KeyboardInterrupt):
        extend(run, 8, corpus(), progress=stop_at(after))
    assert files(run) == before  # the finished run is still there, and loads
    loaded = fit("noisy", recipe(**SETTINGS), corpus(), run, progress=never)
    assert len(loaded.history) == 4
    resumed = extend(run, 8, corpus(), tell=said.append)
    assert said[0].startswith("resumes after step 6 of steps 5 to 8" if after == 7 else "trains steps 5 to 8")
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [row["pixel"] for row in resumed.history] == [row["pixel"] for row in whole.history]
    for name in ("host.safetensors", "tavq.safetensors", "method.safetensors", "settings.json", "recipe.yaml"):
        assert (run / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


def test_the_number_of_steps_is_the_total_so_a_repeated_call_only_loads(run):
    extended = extend(run, 6, corpus())
    before, said = files(run), []
    again = extend(run, 6, corpus(), progress=never, tell=said.append)
    assert files(run) == before and said == [f"{run} has 6 steps already: nothing is trained"]
    ours, theirs = weights(again), weights(extended)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and again.history == extended.history
    with pytest.raises(ValueError, match=r"has 6 steps already: --extend takes the number of steps .* more than 6"):
        extend(run, 5, corpus())
    further = extend(run, 9, corpus())
    assert json.loads((run / "settings.json").read_text())["phases"] == [4, 6, 9] and len(further.history) == 9
    (found,) = runs_in(run, None, allow=())
    assert found.recipe.steps == 9
    for name, value in found.load().tokenizer.state_dict().items():
        assert torch.equal(value, further.tokenizer.state_dict()[name])


def test_the_settings_of_before_say_what_the_folder_holds(run):
    extend(run, 6, corpus())
    for steps in (4, 6):
        with pytest.raises(ValueError, match=r"holds a run of 4 steps that was extended to 6: .* --extend 6 loads it"):
            fit("noisy", recipe(**{**SETTINGS, "steps": steps}), corpus(), run, progress=never)
    assert "# Extended: schedules end at steps 4, 6" in (run / "recipe.yaml").read_text()


def test_another_total_is_refused_while_an_extension_is_unfinished(run):
    with pytest.raises(KeyboardInterrupt):
        extend(run, 8, corpus(), progress=stop_at(7))
    with pytest.raises(ValueError, match=r"to 8 steps has begun, .*: give --extend 8 to go on with it, or delete"):
        extend(run, 10, corpus(), progress=never)


def test_what_cannot_be_extended_is_refused_with_the_mend(run, tmp_path):
    with pytest.raises(ValueError, match="holds no run to extend: train one first"):
        extend(tmp_path / "none", 8, corpus())
    stopped("noisy", recipe(**SETTINGS), tmp_path / "half", after=3)
    with pytest.raises(ValueError, match="is not finished: give the command that made it again, without --extend"):
        extend(tmp_path / "half", 8, corpus())
    with pytest.raises(ValueError, match="was trained on another corpus"):
        extend(run, 8, corpus(9))
    (tmp_path / "out" / "noisy").mkdir(parents=True)
    (tmp_path / "out" / "shared.json").write_text("{}")
    inside = run.rename(tmp_path / "out" / "noisy" / "seed0")
    with pytest.raises(ValueError, match="belongs to a comparison"):
        extend(inside, 8, corpus())
    settings = recipe(steps=1, options={"threshold": 1})
    fit("vqct", settings, corpus(), tmp_path / "vqct")
    with pytest.raises(ValueError, match="vqct computes the codebook by a network that a finished run does not hold"):
        extend(tmp_path / "vqct", 2, corpus())


@pytest.mark.parametrize("moved", [0, 1, 4, 5])
def test_a_kill_while_the_files_are_replaced_loses_nothing(run, tmp_path, moved):
    """The files are moved one by one; whichever was the last, the next call moves the rest."""
    shutil.copytree(run, tmp_path / "before")
    whole = extend(run, 6, corpus())
    order = ["settings.json", "recipe.yaml", "host.safetensors", "tavq.safetensors", "method.safetensors"]
    shutil.copytree(run, tmp_path / "after")
    settings, summary = (json.loads((run / name).read_text()) for name in ("settings.json", "history.json"))
    (run / "history.json").unlink()
    (run / "history.json").mkdir()  # the files cannot be moved
    with pytest.raises(OSError):
        replace_finished(run, whole.tokenizer, whole.method, settings, summary, "Extended.")
    (run / "history.json").rmdir()
    for name in order[:moved]:
        (run / ".final" / name).replace(run / name)
    for name in order[moved:]:  # not moved yet
        shutil.copy(tmp_path / "before" / name, run / name)
    with pytest.raises(ValueError, match="is not finished"):
        runs_in(run, None, allow=())
    if moved == 4:
        with pytest.raises(ValueError, match="was extended to 6"):  # not trained anew from its start
            fit("noisy", recipe(**SETTINGS), corpus(), run, progress=never)
    loaded = extend(run, 6, corpus(), progress=never)
    assert loaded.history == whole.history and not (run / ".final").exists()
    for name in ("host", "tavq", "method"):
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in (run, tmp_path / "after"))
        different = [key for key in theirs if not torch.equal(ours[key], theirs[key])]
        assert different == [], name


def test_checkpoints_left_by_a_kill_at_the_end_of_the_run_are_not_resumed(run, tmp_path):
    stopped("noisy", recipe(**SETTINGS), tmp_path / "other", after=3)
    (tmp_path / "other" / "checkpoints").rename(run / "checkpoints")
    assert Checkpoints(run / "checkpoints").latest()[0]["number"] == 2
    seen = []
    extend(run, 6, corpus(), progress=lambda done, row: seen.append(done))
    assert seen == [5, 6] and not (run / "checkpoints").exists()


def test_a_broken_extension_leaves_the_run_as_it_was(tmp_path):
    fit("noisy", recipe(**SETTINGS, options={"broken_at": 5}), corpus(), tmp_path)
    before = files(tmp_path)
    with pytest.raises(FloatingPointError, match="pull is nan at step 5"):
        extend(tmp_path, 8, corpus())
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", [name for name in METHODS if name != "vqct"])
def test_every_method_goes_on_from_its_finished_weights(name, tmp_path):
    settings = dict(steps=3, batch_size=4, optimizer={"learning_rate": 1e-12, "warmup": 0})
    finished = fit(name, recipe(**settings), corpus(), tmp_path)
    extended = extend(tmp_path, 4, corpus())
    ours, theirs = weights(extended), weights(finished)
    assert ours.keys() == theirs.keys()
    moves_codes = ("tokenizer.host.quantize.embedding.weight",) if name == "cvq" else ()
    for key in ours.keys() - {*moves_codes}:
        torch.testing.assert_close(ours[key], theirs[key], msg=key)


def test_the_last_row_of_an_extension_has_diagnostics_and_no_row_of_the_run_changes(tmp_path):
    finished = fit("tavq", recipe(steps=3), corpus(), tmp_path)
    extended = extend(tmp_path, 5, corpus())
    assert extended.history[:3] == finished.history
    assert ["effective_rank_1" in row for row in extended.history[2:]] == [True, False, True]
