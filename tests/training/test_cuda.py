"""On a GPU: every method trains, a resumed run ends the same, and a wrapped host computes what the bare one does."""

import pytest
import torch
from helpers.toy_corpus import corpus, recipe, stopped, weights

import tavq_plugin as tavq
from tavq_plugin.methods import METHODS
from tavq_plugin.pixels import to_float
from tavq_plugin.training import fit
from tavq_plugin.training.build_host import build_host
from tavq_plugin.training.recipe import HostRecipe

pytest.importorskip("taming")
pytest.importorskip("accelerate")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SHARED = dict(
    steps=6, batch_size=4, checkpoint_every=2, ema=0.5, start={"settle_share": 0.34, "revive_every": 2},
    adversarial={"weight": 0.8, "start": 3, "width": 4, "layers": 1},
)  # fmt: skip


@pytest.fixture
def repeatable(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_trains_on_the_gpu(name, precision, tmp_path):
    settings = recipe(**SHARED, precision=precision, options={"threshold": 1} if name == "vqct" else {})
    fitted = fit(name, settings, corpus(), tmp_path / "run")
    parameters = [*fitted.tokenizer.parameters(), *fitted.method.parameters()]
    assert all(p.is_cuda and p.isfinite().all() for p in parameters)
    assert len(fitted.history) == 6 and fitted.history[-1]["pixel"] < 10
    kept = fit(name, settings, corpus(), tmp_path / "run", progress=lambda *row: pytest.fail("trained"))
    assert all(torch.equal(value, weights(fitted)[key]) for key, value in weights(kept).items())


def test_a_resumed_run_equals_an_uninterrupted_one(repeatable, tmp_path):
    whole = fit("tavq", recipe(**SHARED), corpus(), tmp_path / "whole")
    stopped("tavq", recipe(**SHARED), tmp_path / "run", after=5)
    resumed = fit("tavq", recipe(**SHARED), corpus(), tmp_path / "run")
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_the_wrapped_host_computes_what_the_bare_one_does(repeatable):
    settings = recipe()
    torch.manual_seed(0)
    host = build_host(HostRecipe(**settings.to_dict()["host"]), settings.resolution).cuda()
    images = to_float(corpus().images[:4]).cuda()

    def passed(forward):
        host.zero_grad()
        reconstruction, loss = forward(images)[:2]
        (loss + (reconstruction - images).abs().mean()).backward()
        return [reconstruction, loss, *(p.grad for p in host.parameters())]

    bare = [part.detach().clone() for part in passed(host)]
    wrapped = passed(lambda images: tavq.wrap(host).cuda()(images)[0])
    assert all(torch.equal(a, b) for a, b in zip(bare, wrapped, strict=True))
