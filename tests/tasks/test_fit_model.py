"""Training the small model of a task: resumed exactly, kept, refused."""

import pytest
import torch
from torch import nn

from tavq_plugin.tasks.fit_model import FitSettings, fit_model

DATA = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
SETTINGS = FitSettings(steps=12, batch_size=8, learning_rate=1e-2, warmup=2)


def model():
    torch.manual_seed(0)
    return nn.Linear(3, 3)


def loss_of(net, rows, draw):
    x = DATA[rows]
    return (net(x + 0.1 * torch.randn(x.shape, generator=draw)) - x).square().mean()


def trained(folder, **more):
    return fit_model(model(), loss_of, n=64, settings=SETTINGS, folder=folder, made_from={"of": 1}, **more)


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    whole = trained(tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 8:
            raise Stop

    with pytest.raises(Stop):
        trained(tmp_path / "stopped", progress=stop)
    done = []
    resumed = trained(tmp_path / "stopped", progress=lambda step, total: done.append(step))
    assert done[0] == 7 and torch.equal(whole.weight, resumed.weight)


def test_a_finished_model_is_kept_and_another_is_trained_anew(tmp_path):
    first, done = trained(tmp_path), []
    again = trained(tmp_path, progress=lambda *step: done.append(step))
    assert not done and torch.equal(first.weight, again.weight)
    fit_model(
        model(), loss_of, n=64, settings=SETTINGS, folder=tmp_path, made_from={"of": 2},
        progress=lambda *step: done.append(step),
    )  # fmt: skip
    assert len(done) == SETTINGS.steps


def test_a_loss_that_is_not_finite_stops(tmp_path):
    with pytest.raises(FloatingPointError, match="step 0"):
        fit_model(
            model(), lambda net, rows, draw: net.weight.sum() * torch.nan, n=64, settings=SETTINGS, folder=tmp_path,
            made_from={},
        )  # fmt: skip


def test_a_file_of_someone_else_is_not_overwritten(tmp_path):
    (tmp_path / "model.json").write_text("mine")
    with pytest.raises(FileExistsError, match="model.json"):
        trained(tmp_path)
