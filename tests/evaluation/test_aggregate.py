"""Tables of a comparison: cells, differences, what stands, what is unmoved, and the sentence for a hurried reader."""

import json
import math
import statistics

import pytest
import torch
from scipy import stats

from tavq_plugin.evaluation.aggregate import EqualTime, summarise
from tavq_plugin.evaluation.headline import headline_sentence
from tavq_plugin.evaluation.results import RunResults, load_results, save_results

IMAGES = 40


class Targets:
    top_words = ("a", "b", "c", "d", "e")
    held_out_words = torch.rand(IMAGES, 5, generator=torch.Generator().manual_seed(0)) > 0.5


def run(seed, shift=0.0, *, recall=20.0, **changed):
    """Results of one run; `shift` raises its PSNR, and `recall` is its R@10."""
    draw = torch.Generator().manual_seed(seed)
    psnr = 20 + shift + torch.randn(IMAGES, generator=draw)
    kept = {f"{side}_indices": torch.randint(0, 8, (IMAGES, 2, 2), generator=draw) for side in ("train", "held_out")}
    kept |= {"codes": torch.tensor(8), "word_scores_1": torch.randn(IMAGES, 5, generator=draw)}
    values = {"psnr": psnr.mean().item(), "usage": 50.0 + seed**2 + 3 * shift, "image_text_r10": recall + 0.1 * seed}
    settings = {"chance": {"image_text_r10": (2.0 + 0.1 * seed, 0.5)}, **changed}
    return RunResults(values, {"psnr": psnr}, {"rfid": "no weights"}, kept, **settings)


def method(*shifts, **settings):
    return {seed: run(seed, shift, **settings) for seed, shift in enumerate(shifts)}


def test_a_cell_has_mean_spread_interval_and_chance():
    content = summarise({"vqgan": method(0, 0.1, 0.3)}, Targets)
    cell = content["methods"]["vqgan"]["image_text_r10"]
    values = [20.0, 20.1, 20.2]
    low, high = stats.t.interval(0.95, 2, 20.1, stats.sem(values))
    assert cell["mean"] == pytest.approx(20.1) and cell["spread"] == pytest.approx(statistics.stdev(values))
    assert (cell["low"], cell["high"], cell["over"]) == (pytest.approx(low), pytest.approx(high), "seeds")
    assert cell["chance"] == pytest.approx(2.1) and cell["chance_spread"] == pytest.approx(0.5)
    assert content["methods"]["vqgan"]["psnr"]["over"] == "seeds and images"
    assert content["methods"]["vqgan"]["psnr"]["chance"] is None
    assert content["absent"]["vqgan"] == {"rfid": "no weights"} and content["differences"] == {}
    assert content["equal_time"] == {"missing": "not asked for"}
    json.dumps(content, allow_nan=False)


def test_every_shared_metric_is_compared_with_the_reference():
    runs = {"tavq": method(1.0, 1.1, 0.9, recall=25.0), "vqgan": method(0, 0, 0)}
    content = summarise(runs, Targets)
    assert set(content["differences"]) >= {"psnr", "usage", "image_text_r10", "stability_codes"}
    row = content["differences"]["psnr"]["tavq"]
    assert set(content["differences"]["psnr"]) == {"tavq"} and row["minus"] == "vqgan"
    assert row["by_seed"] == pytest.approx({"0": 1.0, "1": 1.1, "2": 0.9}, abs=1e-5)
    assert row["mean"] == pytest.approx(1.0, abs=1e-5) and row["low"] < 1 < row["high"]
    assert row["p_holm"] == row["p"] < 0.05 and row["stands"] is True
    by_hand = stats.ttest_rel(*([runs[name][seed].values["usage"] for seed in range(3)] for name in ("tavq", "vqgan")))
    usage = content["differences"]["usage"]["tavq"]
    assert usage["p"] == pytest.approx(by_hand.pvalue) and usage["over"] == "seeds"
    reverse = summarise(runs, Targets, reference="tavq")["differences"]["psnr"]["vqgan"]
    assert reverse["mean"] == pytest.approx(-row["mean"]) and reverse["minus"] == "tavq"
    with pytest.raises(ValueError, match="reference 'lgvq' has no runs: give one of tavq, vqgan"):
        summarise(runs, Targets, reference="lgvq")


def test_p_values_are_adjusted_over_the_methods():
    shifts = {"a": (0.2, 0.3, 0.6), "b": (0.5, 0.6, 0.9), "c": (-0.1, 0.1, 0.2)}
    runs = {"first": method(0, 0, 0)} | {name: method(*values) for name, values in shifts.items()}
    rows = summarise(runs, Targets)["differences"]["psnr"]
    ordered = sorted(rows.values(), key=lambda row: row["p"])
    expected, reached = [], 0.0
    for i, row in enumerate(ordered):
        reached = max(reached, (3 - i) * row["p"])
        expected.append(min(1.0, reached))
    assert [row["p_holm"] for row in ordered] == pytest.approx(expected)
    assert all(row["stands"] == (row["p_holm"] < 0.05) for row in rows.values())
    assert {row["minus"] for row in rows.values()} == {"first"}


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_three_seeds_nothing_stands(seeds):
    runs = {"vqgan": method(*(0.0, 0.0)[:seeds]), "tavq": method(*(5.0, 5.2)[:seeds], recall=40.0)}
    content = summarise(runs, Targets)
    for by_method in content["differences"].values():
        row = by_method["tavq"]
        assert row["p"] is row["p_holm"] is None and row["stands"] is False
    row = content["differences"]["psnr"]["tavq"]
    assert row["mean"] > 4 and row["low"] <= row["mean"] and set(row["by_seed"]) == set(map(str, range(seeds)))
    if seeds == 2:
        assert row["detectable"] > 0
    assert row["over"] == ("images" if seeds == 1 else "seeds and images")
    assert set(content["best"].values()) == {None}
    assert ("stability_codes" in content["absent"]["tavq"]) == (seeds == 1)


def test_the_best_differs_from_every_other_method_in_the_metrics_direction():
    runs = {"vqgan": method(0, 0, 0), "tavq": method(2.0, 2.1, 1.9), "other": method(1.0, 1.0, 1.1)}
    assert summarise(runs, Targets)["best"]["psnr"] == "tavq"
    near = {**runs, "other": method(2.0, 2.3, 1.6)}
    assert summarise(near, Targets)["best"]["psnr"] is None
    for seeds in runs.values():
        for results in seeds.values():
            results.values["rfid"] = results.values["psnr"]
    assert summarise(runs, Targets)["best"]["rfid"] == "vqgan"


def test_methods_are_compared_on_the_seeds_that_both_have():
    runs = {"vqgan": method(0, 0, 0), "tavq": {0: run(0, 1.0), 2: run(2, 1.2), 5: run(5, 9.0)}}
    row = summarise(runs, Targets)["differences"]["psnr"]["tavq"]
    assert row["by_seed"] == pytest.approx({"0": 1.0, "2": 1.2}, abs=1e-5) and row["p"] is None
    apart = {"vqgan": {0: run(0)}, "tavq": {1: run(1)}}
    assert summarise(apart, Targets)["differences"] == {}


def test_a_value_that_is_not_the_mean_of_its_images_is_tested_over_seeds():
    runs = {"vqgan": method(0, 0, 0), "tavq": method(1.0, 1.1, 0.9)}
    for seeds in runs.values():
        for results in seeds.values():
            results.values["psnr"] = results.per_image["psnr"].median().item()
    content = summarise(runs, Targets)
    assert content["differences"]["psnr"]["tavq"]["over"] == content["methods"]["tavq"]["psnr"]["over"] == "seeds"


def test_images_without_a_value_are_left_out():
    runs = {"vqgan": method(0, 0, 0), "tavq": method(1.0, 1.1, 0.9)}
    for seeds in runs.values():
        for results in seeds.values():
            results.per_image["psnr"][:30] = math.nan
            results.values["psnr"] = results.per_image["psnr"].nanmean().item()
    row = summarise(runs, Targets)["differences"]["psnr"]["tavq"]
    assert row["over"] == "seeds and images" and row["mean"] == pytest.approx(1.0, abs=1e-5)


def test_a_text_metric_at_chance_is_unmoved_and_nothing_in_it_stands():
    runs = {"vqgan": method(0, 0, 0, recall=2.0), "tavq": method(0, 0, 0, recall=2.9)}
    for seed, results in runs["tavq"].items():
        results.values["image_text_r10"] += 0.01 * seed  # so that the difference varies
    content = summarise(runs, Targets)
    assert content["unmoved"].keys() - {"stability_codes"} == {"image_text_r10"}
    assert "2.1 ± 0.5" in content["unmoved"]["image_text_r10"]
    row = content["differences"]["image_text_r10"]["tavq"]
    assert row["p_holm"] < 0.05 and row["stands"] is False and content["best"]["image_text_r10"] is None
    moved = summarise({**runs, "other": method(0, 0, 0, recall=3.2)}, Targets)
    assert "image_text_r10" not in moved["unmoved"] and moved["differences"]["image_text_r10"]["tavq"]["stands"] is True


def test_floors_have_cells_and_reasons():
    floors = {"mean-colour": {0: run(0, recall=6.0)}, "patch-kmeans": method(0, 0.1, recall=9.0)}
    content = summarise({"vqgan": method(0, 0)}, Targets, floors=floors)
    assert content["floors"]["mean-colour"]["image_text_r10"]["seeds"] == {"0": 6.0}
    assert set(content["floors"]["patch-kmeans"]["psnr"]["seeds"]) == {"0", "1"}
    assert content["absent"]["mean-colour"] == {"rfid": "no weights"} and list(content["methods"]) == ["vqgan"]


def test_equal_time_has_cells_steps_and_differences():
    runs = {"vqgan": method(0, 0, 0), "tavq": method(1.0, 1.1, 0.9)}
    slower = {"vqgan": method(0, 0, 0), "tavq": method(0.5, 0.6, 0.4)}
    content = summarise(runs, Targets, equal_time=EqualTime(slower, {"vqgan": 10, "tavq": 6}))["equal_time"]
    assert content["steps"] == {"vqgan": 10, "tavq": 6} and set(content["methods"]) == {"vqgan", "tavq"}
    assert content["differences"]["psnr"]["tavq"]["mean"] == pytest.approx(0.5, abs=1e-5)
    missing = summarise(runs, Targets, equal_time="vqgan alone was timed")["equal_time"]
    assert missing == {"missing": "vqgan alone was timed"}


def test_stability_is_the_excess_over_dealt_texts_for_each_pair_of_seeds():
    content = summarise({"vqgan": method(0, 0, 0), "tavq": method(0, 0, 0)}, Targets)
    cell = content["methods"]["vqgan"]["stability_codes"]
    assert set(cell["seeds"]) == {"0-1", "0-2", "1-2"} and cell["low"] is None
    assert cell["chance"] == 0 and cell["chance_spread"] > 0  # it is an excess over dealt texts
    assert content["methods"]["vqgan"]["stability_codes_null"]["chance"] is None
    is_at_chance = abs(cell["mean"]) <= 2 * cell["chance_spread"]  # both methods have the same codes
    assert ("stability_codes" in content["unmoved"]) == is_at_chance
    row = content["differences"]["stability_codes"]["tavq"]
    assert row["mean"] == 0 and row["p"] is None and set(row["by_seed"]) == {"0-1", "0-2", "1-2"}
    same = {0: run(0), 1: run(0)}  # both seeds have the same codes: their tables agree fully
    cells = summarise({"vqgan": same}, Targets)["methods"]["vqgan"]
    assert cells["stability_codes"]["mean"] + cells["stability_codes_null"]["mean"] == pytest.approx(1)


def test_chance_is_merged_stored_and_read_and_older_files_have_none(tmp_path):
    merged = run(0) | RunResults(chance={"word_map": (9.4, 0.2)})
    assert merged.chance == {"image_text_r10": (2.0, 0.5), "word_map": (9.4, 0.2)}
    save_results(tmp_path, merged, {"a": 1})
    assert load_results(tmp_path, {"a": 1}).chance == merged.chance
    content = json.loads((tmp_path / "measured.json").read_text())
    assert content["chance"]["word_map"] == [9.4, 0.2]
    del content["chance"]
    (tmp_path / "measured.json").write_text(json.dumps(content))
    assert load_results(tmp_path, {"a": 1}).chance == {}


def row(mean, *, seeds=3, stands=False, half=1.0, detectable=1.5, minus="vqgan", over="seeds and images"):
    """A row of differences."""
    bounds = {"low": mean - half, "high": mean + half} if half is not None else {"low": None, "high": None}
    p = None if seeds < 3 else 0.01 if stands else 0.4
    by_seed = {str(seed): mean for seed in range(seeds)}
    known = {"p": p, "p_holm": p, "df": 2.0, "detectable": detectable, "by_seed": by_seed, "over": over}
    return {"minus": minus, "mean": mean, **bounds, **known, "stands": stands}


def content_of(rows, *, floors=None, **changed):
    """Content of a comparison with vqgan at R@10 5.0 and PSNR 20, and others by rows {metric: {method: row}}."""
    base = {"grid_r10_3": 5.0, "psnr": 20.0}
    names = dict.fromkeys(["vqgan", *(name for by_method in rows.values() for name in by_method)])
    methods = {
        name: {
            metric: {"mean": base[metric] + (by_method[name]["mean"] if name in by_method else 0), "chance": None}
            for metric, by_method in rows.items()
        }
        for name in names
    }
    floors = {name: {"grid_r10_3": {"mean": value}} for name, value in (floors or {}).items()}
    protocol = {"split": "tune", "n_eval": 500, "reference": "vqgan"}
    content = {"protocol": protocol, "methods": methods, "floors": floors, "differences": rows, "absent": {}}
    return {**content, "unmoved": {}, "failed": {}, **changed}


def test_the_sentence_of_three_seeds():
    rows = {
        "grid_r10_3": {"tavq": row(2.14, stands=True)},
        "psnr": {"tavq": row(-0.031, half=0.05, detectable=0.06)},
    }
    floors = {"mean-colour": 5.9, "thumbnail": 9.9, "mobilenet": 40.0}  # the last is a ceiling
    content = content_of(rows, floors=floors)
    content["methods"]["tavq"]["grid_r10_3"]["chance"] = 2.0
    content["protocol"] |= {"seeds": [0, 1, 2], "floors": {"thumbnail": "4 × 4 thumbnail"}}
    assert headline_sentence(content) == (
        "On the 500 images of the tune split, with 3 seeds, tavq's R@10 of the stored codes is 2.1 points above "
        "vqgan's (7.1 against 5.0 %; chance: 2.0 %; 95 % interval of the difference: 1.1 to 3.1), and this stands "
        "(p = 0.010); tavq's PSNR is 0.03 dB below vqgan's (19.97 against 20.00 dB; 95 % interval of the difference: "
        "−0.08 to 0.02), which does not stand: with 3 seeds only true differences of "
        "0.06 dB or more are likely to show. The best floor, features that nobody trained (4 × 4 thumbnail), reaches "
        "9.9 % R@10, more than tavq."
    )


def test_the_sentence_of_fewer_seeds_says_what_they_could_tell():
    one = row(2.0, seeds=1, over="images")
    said = headline_sentence(content_of({"grid_r10_3": {"tavq": one}, "psnr": {"tavq": one}}))
    assert "95 % interval of the difference over images alone: 1.0 to 3.0" in said
    assert "one seed cannot show whether this holds with other seeds" in said and "of 1.5 points or more" in said
    two = row(2.0, seeds=2)
    said = headline_sentence(content_of({"grid_r10_3": {"tavq": two}, "psnr": {"tavq": two}}))
    assert "2 seeds are too few to test this: only true differences of 1.50 dB or more are likely to show" in said
    unknown = row(2.0, seeds=1, half=None, detectable=None, over=None)
    said = headline_sentence(content_of({"grid_r10_3": {"tavq": unknown}, "psnr": {"tavq": one}}))
    assert "how large the noise is cannot be known" in said and "stands" not in said


def test_the_sentence_of_several_methods_names_tavq_or_the_largest_difference():
    rows = {"a": row(1.0), "tavq": row(0.5), "b": row(-4.0, stands=True)}
    said = headline_sentence(content_of({"grid_r10_3": rows, "psnr": rows}))
    assert "tavq's R@10 of the stored codes is 0.5 points above" in said
    assert said.endswith(" 1 of the 2 other methods' differences in R@10 of the stored codes stands.")
    others = {name: value for name, value in rows.items() if name != "tavq"}
    said = headline_sentence(content_of({"grid_r10_3": others, "psnr": others}))
    assert "b's R@10 of the stored codes is 4.0 points below vqgan's" in said
    assert said.endswith("The difference of the other method in R@10 of the stored codes does not stand.")
    three = rows | {"c": row(1.0), "b": row(-4.0)}
    assert headline_sentence(content_of({"grid_r10_3": three})).endswith(
        "None of the 3 other methods' differences in R@10 of the stored codes stands."
    )


def test_the_sentence_of_one_method_states_its_values():
    content = content_of({"grid_r10_3": {}, "psnr": {}}, floors={"thumbnail": 3.0})
    assert headline_sentence(content) == (
        "On the 500 images of the tune split, vqgan's R@10 of the stored codes is 5.0 %; vqgan's PSNR is 20.00 dB; no "
        "second method was measured, so there is no difference to state. The best floor, features that "
        "nobody trained (thumbnail), reaches 3.0 % R@10, less than vqgan."
    )


def test_the_sentence_names_what_is_missing_failed_or_at_chance():
    content = content_of({"psnr": {"tavq": row(1.0, stands=True)}}, absent={"tavq": {"grid_r10_3": "no texts"}})
    said = headline_sentence({**content, "failed": {"tavq, seed 2": "nan"}})
    assert "R@10 of the stored codes was not measured (no texts)" in said and "dB above vqgan's" in said
    assert said.endswith(". 1 run failed.")
    unmoved = content_of({"grid_r10_3": {"tavq": row(1.0)}}, unmoved={"grid_r10_3": "why"})
    assert "no method is above chance, so this says nothing about the text" in headline_sentence(unmoved)
    same = headline_sentence(content_of({"psnr": {"tavq": row(0.001)}}))
    assert "tavq's PSNR is the same as vqgan's to the digits shown (20.00 against 20.00 dB" in same
    assert headline_sentence({"methods": {"vqgan": {}}}).startswith("Every run failed")


def test_the_sentence_of_a_summary():
    runs = {"vqgan": method(0, 0, 0), "tavq": method(1.0, 1.1, 0.9)}
    said = headline_sentence(summarise(runs, Targets) | {"protocol": {"split": "test", "n_eval": IMAGES}, "failed": {}})
    assert said.startswith("On the 40 images of the test split, R@10 of the stored codes was not measured")
    assert "tavq's PSNR is 1.00 dB above vqgan's" in said and "and this stands" in said
    assert said.count(". ") <= 1
