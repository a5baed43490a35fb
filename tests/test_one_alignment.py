"""`attach` as examples/plain_loop.py uses it, and the method tavq as `compare` trains it: one loss, to the bit."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.small_methods import corpus
from torch import nn

import tavq_plugin as tavq
from tavq_plugin.evaluation.plan import plan_of
from tavq_plugin.pixels import to_float
from tavq_plugin.training.build import build
from tavq_plugin.training.build_host import small_vqgan
from tavq_plugin.training.schedule import Phase
from tavq_plugin.training.step import TrainingStep
from tavq_plugin.training.timer import StepTimer

pytest.importorskip("taming")
ROWS, STEPS = [0, 2, 5], 20
CASES = {  # arguments of `attach`, and what `compare --set tavq.options.…` gives
    "default": {},
    "a balance per level": {"balance": [0.5, 1.0, 2.0]},
    "weighted sum": {"balance": None},
    "weight": {"weight": 0.3},
}


def example():
    path = Path(__file__).parents[1] / "examples" / "plain_loop.py"
    spec = importlib.util.spec_from_file_location("examples.plain_loop", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("done", [0, 5])  # steps with codes
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_the_example_and_the_trainer_give_the_same_loss_and_gradients(settings, done, tmp_path):
    size = F.interpolate(to_float(corpus().images), size=64)
    data = replace(corpus(), images=((size + 1) * 127.5).round().to(torch.uint8))
    images = to_float(data.images[ROWS])

    given = [f"tavq.options.{name}={'null' if value is None else value}" for name, value in settings.items()]
    plan = plan_of(out=tmp_path, methods="tavq", steps=STEPS, overrides=[*given, "host.params.n_embed=32"])
    (job,) = plan.jobs
    tokenizer, method = build(job.recipe, data)
    trainer = TrainingStep(tokenizer, method, data, None, job.recipe, Phase.whole(job.recipe)).train()
    trainer.timer = StepTimer(nn.Identity())
    _, terms = trainer(torch.tensor(ROWS), images, job.recipe.settled + done, False)

    host = small_vqgan(64, n_embed=32)
    host.load_state_dict(tokenizer.host.state_dict())
    optimizer = torch.optim.Adam(host.parameters())
    align = tavq.attach(host, optimizer, store=data.store, total_steps=STEPS - job.recipe.settled, **settings)
    align.hierarchy.load_state_dict(tokenizer.hierarchy.state_dict())
    align.alignment.load_state_dict(method.align.state_dict())
    for _ in range(done):
        optimizer.step()  # without gradients: nothing moves, but the steps count
    own, added = example().losses(host, align, images, ROWS)

    assert torch.equal(own, terms["pixel"] + terms["quantizer"])
    assert torch.equal(align.last["alignment"], terms["alignment"])
    assert torch.equal(align.last["codebook_loss"], terms["level"])
    assert torch.equal(added, terms["alignment"] + terms["level"])
    torch.stack(list(terms.values())).sum().backward()
    (own + added).backward()
    pairs = {"host": (tokenizer.host, host), "levels": (tokenizer.hierarchy, align.hierarchy)}
    pairs["heads"] = (method.align, align.alignment)
    for part, modules in pairs.items():
        ours, theirs = ({name: p.grad for name, p in module.named_parameters()} for module in modules)
        assert ours.keys() == theirs.keys() and ours
        for name in ours:
            assert ours[name] is not None and ours[name].norm() > 0, f"{part}: {name}"
            assert torch.equal(ours[name], theirs[name]), f"{part}: {name}"
