"""The host's encoder and decoder are compiled apart, with the taps and the quantizer outside; nothing of it stays."""

from types import SimpleNamespace

import pytest
import torch
from helpers.toy_corpus import corpus, recipe

import tavq_plugin as tavq
from tavq_plugin.training import fit
from tavq_plugin.training.build_host import build_host
from tavq_plugin.training.compiled_parts import compile_parts, parts_to_compile

pytest.importorskip("taming")
pytest.importorskip("accelerate")


@pytest.fixture
def adapter():
    return tavq.wrap(build_host(recipe().host, 16), log_summary=False).adapter


def test_parts_hold_neither_a_tap_nor_the_quantizer(adapter):
    paths = parts_to_compile(adapter)
    assert "decoder" in paths and not any(path.startswith(("decoder.", "quantize")) for path in paths)
    assert set(adapter.taps) <= set(paths)  # their hooks are outside their forward
    inside = [path for path in paths if any(tap.startswith(f"{path}.") for tap in (*adapter.taps, adapter.quantizer))]
    assert not inside and len(set(paths)) == len(paths)


def test_the_handle_makes_the_host_as_it_was(adapter):
    attributes = {name: set(vars(module)) for name, module in adapter.model.named_modules()}
    before = torch._functorch.config.donated_buffer
    handle = compile_parts(adapter, "eager", keeps_graph=True)
    assert "forward" in vars(adapter.model.decoder) and not torch._functorch.config.donated_buffer
    handle.remove()
    assert {name: set(vars(module)) for name, module in adapter.model.named_modules()} == attributes
    assert torch._functorch.config.donated_buffer == before


def test_a_host_without_such_parts_is_refused():
    host = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 1) for _ in range(4)))
    adapter = SimpleNamespace(model=host, taps=("0", "1"), quantizer="2")
    with pytest.raises(ValueError, match='finds no module of Sequential .*: give compile: "no"'):
        compile_parts(adapter, "eager")


@pytest.mark.slow
def test_a_compiled_run_with_balanced_gradients_and_a_discriminator_is_the_same(tmp_path):
    changes = {"batch_size": 4, "adversarial": {"start": 2, "width": 4, "layers": 1}, "start": {"settle_share": 0.25}}
    one, other = (
        fit("tavq", recipe(**changes, compile=compile), corpus(), tmp_path / compile) for compile in ("no", "aot_eager")
    )
    torch._dynamo.reset()
    for row, expected in zip(other.history, one.history, strict=True):
        assert row.keys() == expected.keys()
        for name in row.keys() - {"seconds", "plugin_share"}:
            assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), (name, row["step"])
    assert one.history[-1]["adaptive"] > 0 and one.history[-1]["gradient_ratio_quantize_input"] > 0
    assert not any("forward" in vars(module) for module in other.tokenizer.modules())
