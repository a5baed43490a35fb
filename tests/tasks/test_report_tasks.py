"""The tables, the Markdown and the page of `tavq task`."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tavq_plugin.tasks.report.sample_picture import sample_picture
from tavq_plugin.tasks.report.task_tables import overview, protocol_line, task_tables
from tavq_plugin.tasks.report.write_tasks import markdown, page, sample_rows, terminal
from tavq_plugin.tasks.task import Condition, Sample, TaskResult
from tavq_plugin.tasks.task_statistics import task_statistics

pytest.importorskip("jinja2")


def result(match, image=None, text="what <b>it</b> wrote"):
    values = torch.tensor(match)
    samples = [] if image is None else [Sample("a <red> circle", [image], text, "the | truth")]
    conditions = {
        "codes": Condition({"match": float(values.mean()), "distance": 31.25}, {"match": values}),
        "majority": Condition({"match": 0.125}),
    }
    return TaskResult(conditions, {"spice": "it needs Java"}, samples, {"steps": 4})


def content_of(runs, *, smaller_is_better=False, failed=None, quick=False, bits=576.0):
    names = [f"{run}, seed {seed}" for run, seeds in runs.items() for seed in seeds]
    shown = {
        run: {
            str(seed): {"conditions": {}, "missing": dict(found.missing), "protocol": dict(found.protocol)}
            for seed, found in seeds.items()
        }
        for run, seeds in runs.items()
    }
    baseline = next(iter(runs)) if len(runs) > 1 else None
    task = {
        "main_metric": "match", "smaller_is_better": smaller_is_better, "settings": {"quick": quick}, "runs": shown,
        **task_statistics(runs, baseline),
    }  # fmt: skip
    return {
        "tasks": {"captioning": task, "vqa": {"unfit": "no <questions>: give data with qa"}},
        "failed": failed or {},
        "protocol": {
            "data": "scenes", "n_train": 3000, "n_eval": 400, "baseline": baseline, "quick": quick,
            "runs": {name: {"tokens": 64, "bits": bits + i * (bits == 0)} for i, name in enumerate(names)},
        },
    }  # fmt: skip


def three_seeds(lead):
    return {seed: result([0.5 + lead + seed / 1000, 0.25 + lead, 0.75 + lead - seed / 1000]) for seed in range(3)}


def cells_of(table):
    return {row.name: [f"{cell.text} {cell.mark}".strip() for cell in row.cells] for row in table.rows}


def test_the_overview_marks_what_stands_in_the_metrics_own_direction():
    runs = {"vqgan": three_seeds(0.0), "tavq": three_seeds(0.125)}
    up, down = (overview(content_of(runs, smaller_is_better=smaller)) for smaller in (False, True))
    assert cells_of(up)["captioning"][0] == "match ↑" and cells_of(down)["captioning"][0] == "match ↓"
    assert re.fullmatch(r"0\.625 ± \d\.\d{3} ▲", cells_of(up)["captioning"][2])
    assert cells_of(down)["captioning"][2].endswith("▼") and not cells_of(up)["captioning"][1].endswith("▲")
    assert cells_of(up)["vqa"] == ["not run", "–", "–"]


def test_each_task_shows_its_conditions_controls_differences_and_gaps():
    runs = {"vqgan": three_seeds(0.0), "tavq": three_seeds(0.125)}
    captioning, vqa = task_tables(content_of(runs, failed={"vqa": {"tavq, seed 0": "the loss is nan"}}))
    conditions, controls, differences = captioning.tables
    assert [group.title for group in conditions.groups] == ["vqgan", "tavq"]
    assert [column.text for column in conditions.columns] == ["match ↑", "distance"]
    assert [row.name for row in conditions.rows] == ["codes", "majority"] * 2
    assert cells_of(conditions)["codes"][1] == "31.2 ± 0.0" or cells_of(conditions)["codes"][1].startswith("31.")
    assert [row.cells[0].text for row in controls.rows] == ["+0.375", "+0.500"]
    assert cells_of(differences)["tavq, match"][0] == "+0.125" and cells_of(differences)["tavq, match"][-1] == "yes"
    assert captioning.missing == ("spice is not computed: it needs Java",)
    assert vqa.unfit.startswith("no <questions>") and vqa.missing == ("tavq, seed 0 broke: the loss is nan",)


def test_the_first_lines_say_what_cannot_be_concluded():
    one, two = {"tavq": {0: result([0.5])}}, {"vqgan": {0: result([0.5])}, "tavq": {0: result([0.75])}}
    assert "one run, so nothing is compared" in protocol_line(content_of(one))
    assert "nothing is tested" in protocol_line(content_of(two))
    assert "quick run" in protocol_line(content_of(two, quick=True))
    assert "All runs store 64 tokens, 576 bits an image" in protocol_line(content_of(two))
    assert "different numbers of bits" in protocol_line(content_of(two, bits=0.0))
    three = {"vqgan": three_seeds(0.0), "tavq": three_seeds(0.125)}
    assert "▲ is better and ▼ worse than vqgan" in protocol_line(content_of(three))


def test_markdown_holds_every_table_and_no_html_of_the_data():
    text = markdown(content_of({"vqgan": three_seeds(0.0), "tavq": three_seeds(0.125)}))
    assert "Not run: no \\<questions>" in text and "those of vqgan" in text
    assert all(len(line) <= 120 for line in text.splitlines())
    short = terminal(content_of({"vqgan": three_seeds(0.0), "tavq": three_seeds(0.125)}))
    assert "captioning: the codes of each run" in short and "those of vqgan" not in short


def test_the_page_shows_samples_side_by_side_and_holds_all_it_needs():
    red, blue = torch.zeros(2, 3, 4, 5, dtype=torch.uint8).unbind()
    red, blue = red.clone(), blue.clone()
    red[0], blue[2] = 255, 255
    runs = {"vqgan": {0: result([0.5], red), 1: result([0.5])}, "tavq": {0: result([0.75], blue, "blue")}}
    content = content_of(runs)
    html = page(content, {"captioning": runs})
    assert "a &lt;red&gt; circle" in html and "<b>it</b>" not in html and "no &lt;questions&gt;" in html
    addresses = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert len(addresses) == 2 and all(address.startswith("data:image/png;base64,") for address in addresses)
    shown = [np.array(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))) for address in addresses]
    assert [picture.shape for picture in shown] == [(4, 5, 3)] * 2
    assert (shown[0][..., 0] == 255).all() and (shown[1][..., 2] == 255).all()
    assert "<script" not in html and "http:" not in html and "https:" not in html
    (row,) = sample_rows(runs)
    assert [run["name"] for run in row["runs"]] == ["vqgan", "tavq"] and row["truth"] == "the | truth"


def test_the_picture_has_a_row_for_each_run_and_is_left_out_without_images(tmp_path):
    pytest.importorskip("matplotlib")
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    large = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    runs = {name: {0: result([0.5, 0.5, 0.5], image), 1: result([0.1, 0.1, 0.1])} for name in ("vqgan", "tavq")}
    runs["tavq"][0].samples[0] = Sample("two sizes", [image, large], "made")
    assert sample_picture({"completion": runs}, tmp_path / "two.png")
    assert sample_picture({"completion": {"vqgan": runs["vqgan"]}}, tmp_path / "one.png")
    two, one = (Image.open(tmp_path / f"{name}.png") for name in ("two", "one"))
    assert two.width == one.width and two.height > 1.9 * one.height
    assert not sample_picture({"captioning": {"vqgan": {0: result([0.5, 0.5, 0.5])}}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
