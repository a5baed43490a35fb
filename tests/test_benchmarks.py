"""The benchmarks run and tell the truth of a case whose answer is known; sizes are made tiny, nothing is timed."""

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
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("problems", "rivals", "transport", "distributions", "hosts", "store", "prepare", "overhead"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


@pytest.mark.parametrize("family", ["gaussian", "spatial", "clustered", "repeated"])
def test_families_have_their_shapes(benchmark, family):
    problem = benchmark("problems").clouds(family, 2, 256, 6, 32)
    assert [tuple(t.shape) for t in problem] == [(2, 256, 256), (2, 6, 32), (256, 32)]
    assert all(t.isfinite().all() for t in problem)
    distinct = len(problem.codes[0].unique(dim=0))
    assert distinct <= 25 if family == "repeated" else distinct == 256


def test_the_transport_table(benchmark, monkeypatch, tmp_path):
    transport = benchmark("transport")
    monkeypatch.setattr(transport, "LEVELS", {"word": (64, 6)})
    monkeypatch.setattr(transport, "growth", lambda sizes, device: {
        "seconds": {"ours": {256: 1.0}, "POT emd2 loop": {256: 2.0}}, "exponent": {"ours": 1.0, "POT emd2 loop": 1.5}
    })  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["transport.py", "--quick", "--json", str(tmp_path / "t.json")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    transport.main()
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
    assert "| ours |" in (tmp_path / "t.md").read_text()


def test_the_distributions_table(benchmark, monkeypatch, tmp_path):
    distributions = benchmark("distributions")
    monkeypatch.setattr(distributions, "SIDE", 32)
    monkeypatch.setattr(distributions, "UNITS", 6)
    monkeypatch.setattr(distributions, "BATCH", 1)
    out = tmp_path / "d.json"
    monkeypatch.setattr(sys, "argv", ["distributions.py", "--draws", "2", "--json", str(out)])
    distributions.main()
    rows = {row["model"]: row for row in json.loads(out.read_text())["models"]}
    assert rows["all"]["cos_codes_one"] > 0.97 and rows["all"]["value_spread_over_gain"] == 0
    assert rows["moments, 64"]["cos_codes_mean"] < rows["all"]["cos_codes_mean"]  # one Gaussian is a biased model
    assert "| all |" in out.with_suffix(".md").read_text()


def test_the_hosts_table(benchmark, monkeypatch, tmp_path):
    """Rows of a host that passes, one that fails and one that is absent; the suite itself runs in tests/hosts."""
    pytest.importorskip("vector_quantize_pytorch")
    checkouts, tiny_hosts = benchmark("helpers.checkouts"), benchmark("helpers.tiny_hosts")
    hosts = benchmark("hosts")

    def suite(arguments, plugins):
        for name, failed in (("lucidrains-fsq", False), ("lucidrains-lfq", True)):
            crash = SimpleNamespace(reprcrash=SimpleNamespace(message="2 is not 3"))
            report = dict(
                nodeid=f"f.py::test_a[{name}-train]", when="call", skipped=False, failed=failed, longrepr=crash
            )
            plugins[0].pytest_runtest_logreport(SimpleNamespace(**report))

    monkeypatch.setattr(hosts.pytest, "main", suite)
    names = ("lucidrains-fsq", "lucidrains-lfq")
    monkeypatch.setattr(tiny_hosts, "HOSTS", {name: tiny_hosts.HOSTS[name] for name in names})
    monkeypatch.setattr(checkouts, "CHECKOUTS", {"dome272": checkouts.dome272})
    monkeypatch.setenv("TAVQ_HOSTS", str(tmp_path))
    out = tmp_path / "hosts.json"
    monkeypatch.setattr(sys, "argv", ["hosts.py", "--no-speed", "--json", str(out)])
    hosts.main()
    rows = {row["host"]: row for row in json.loads(out.read_text())["hosts"]}
    assert rows["lucidrains-fsq"]["result"] == "passes" and rows["lucidrains-fsq"]["tests"] == 1
    assert rows["lucidrains-fsq"]["levels"] == ["32×32", "16×16", "8×8"]
    assert rows["lucidrains-lfq"]["result"] == "fails test_a[lucidrains-lfq-train]: 2 is not 3"
    assert rows["dome272"]["result"].startswith("absent: no checkout of dome272/VQGAN-pytorch")
    assert "| dome272 |" in out.with_suffix(".md").read_text()


def test_the_store_table_is_of_equal_rows(benchmark, monkeypatch, tmp_path):
    pytest.importorskip("lmdb", reason="lmdb is not installed (a rival of the benchmark)")
    store = benchmark("store")
    monkeypatch.setattr(store, "BATCHES", dict.fromkeys(store.BATCHES, 1))
    monkeypatch.setattr(store, "SHARD", 128)
    monkeypatch.setattr(
        sys, "argv", ["store.py", "--images", "200", "--out", str(tmp_path), "--scratch", str(tmp_path)]
    )
    store.main()
    content = json.loads((tmp_path / "store.json").read_text())
    sizes = content["bytes"]
    assert content["equal_rows"] and sizes["ours"] < sizes["raw"] <= sizes["LMDB, pickled arrays"]
    assert content["ours_times_as_fast"]["ours"] == 1
    assert "| Parquet, in order |" in (tmp_path / "store.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"store.json", "store.md"}


def test_a_run_of_the_memory_benchmark(benchmark, tmp_path):
    prepare, sent = benchmark("prepare"), []
    prepare.texts(tmp_path / "c.jsonl", 30)
    prepare.child(tmp_path / "c.jsonl", tmp_path / "store", type("Pipe", (), {"send": sent.append}))
    assert (sent[0]["texts"], sent[0]["shards"]) == (30, 1) and sent[0]["peak_mb"] > 10


def test_the_overhead_is_that_of_the_same_images(benchmark, monkeypatch, tmp_path):
    from helpers.toy_corpus import corpus

    overhead = benchmark("overhead")
    monkeypatch.setattr(overhead, "load_corpus", lambda folder: corpus(n=8, n_train=6, side=16))
    monkeypatch.setattr(overhead, "CASES", {"tiny": ("small", ["resolution=32", "batch_size=2"])})
    arguments = ["--corpus", "toy", "--cases", "tiny", "--rounds", "2", "--warmup", "1"]
    monkeypatch.setattr(sys, "argv", ["overhead.py", "--json", str(tmp_path / "o.json"), *arguments])
    overhead.main()
    found = json.loads((tmp_path / "o.json").read_text())["cases"]["tiny"]
    assert 0 < found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    assert found["vqgan"] > 0 and found["rounds"] == 2 and found["resolution"] == 32
    seen = overhead.resized(corpus(n=8, n_train=6, side=16), 32)
    assert seen.images.shape == (6, 3, 32, 32) and seen.n_train == len(seen.store) == 6
