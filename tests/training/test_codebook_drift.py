"""A host that begins to look up another table than its codebook is noticed while the trainer runs."""

import warnings

import pytest
import torch
from helpers.strange_hosts import Drifting, Host, Quantizer, parse
from helpers.toy_corpus import corpus, recipe

import tavq_plugin as tavq
from tavq_plugin.hosts.codebook_drift import CodebookDrift
from tavq_plugin.methods.base import Method
from tavq_plugin.methods.tavq import TAVQ
from tavq_plugin.training.checkpoint import Checkpoints
from tavq_plugin.training.loop import TrainingLoop
from tavq_plugin.training.trainer import run_steps

accelerate = pytest.importorskip("accelerate")


def trained(quantizer, folder, method=TAVQ):
    """The rows of 3 steps; the codebook is checked in the second, and moved after the first."""
    torch.manual_seed(0)
    data, settings = corpus(side=64), recipe(method=method.name, steps=3, batch_size=4, log_every=1, checkpoint_every=0)
    tokenizer = tavq.wrap(Host(quantizer), quantizer="vq", parse=parse)
    loop = TrainingLoop(settings, data, accelerate.Accelerator(cpu=True), built=(tokenizer, method(tokenizer, data)))
    loop.module.drift = CodebookDrift(every=2)
    history = []

    def move(step, row):
        if step == 1:
            quantizer.table.data += 0.5

    run_steps(loop, Checkpoints(folder), history, move)
    return history


def test_a_copy_that_is_not_refreshed_is_said_once_with_the_rows(tmp_path):
    with pytest.warns(UserWarning, match=r"by step 2 the host's quantized vectors are no rows") as found:
        history = trained(Drifting(), tmp_path)
    assert sum("no rows of its codebook" in str(one.message) for one in found) == 1
    assert [row["step"] for row in history] == [0, 1, 2]


@pytest.mark.parametrize(("quantizer", "method"), [(Quantizer, TAVQ), (Drifting, Method)])
def test_nothing_is_said_of_a_table_that_learns_or_that_no_level_uses(tmp_path, quantizer, method):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no rows of its codebook")
        assert len(trained(quantizer(), tmp_path, method)) == 3
