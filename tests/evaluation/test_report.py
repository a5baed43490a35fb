"""The report of a comparison: its Markdown, its page also in a browser, and its pictures, from generated content."""

import copy
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.comparison_content import METHODS, REASON, comparison_content
from PIL import Image

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.evaluation.aggregate import summarise
from tavq_plugin.evaluation.metrics.cards import PRIMARY, card_of
from tavq_plugin.evaluation.report import figures
from tavq_plugin.evaluation.report.cells import mark_of, value_cell
from tavq_plugin.evaluation.report.markdown import WIDTH, markdown, terminal
from tavq_plugin.evaluation.report.sections import (
    difference_table,
    equal_time_tables,
    level_table,
    primary_tables,
    seed_tables,
)
from tavq_plugin.evaluation.report.write import page, write_report
from tavq_plugin.evaluation.results import RunResults

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
CODES = {"vqgan": [{"code": 7, "share": 2.0, "words": [("dog", 1.5)]}]}


@pytest.fixture
def content():
    return comparison_content()


def row_of(tables, name):
    """The cells of a row in several tables, by metric; the first tables win."""
    found = {}
    for table in reversed(tables):
        for row in table.rows:
            if row.name == name:
                found |= {c.metric or c.heading: cell for c, cell in zip(table.columns, row.cells, strict=True)}
    return found


class Tags(HTMLParser):
    """Counts the tags of a page, and fails where an element is closed that is not open."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.seen if name == tag]


# ---- what both say


def test_both_begin_with_the_sentence_and_the_protocol(content):
    protocol = (
        "pack: 500 images of the tune split, 64 px; 500 steps × 16 images; seeds 0, 1, 2; 3,000 training images; "
        "commit 0123abc."
    )
    for text in (markdown(content), terminal(content)):
        assert text.startswith(f"{content['headline']}\n\n{protocol}\n\n")
    made = page(content, {}, {})
    assert f"<h1>{content['headline']}</h1>\n<p>{protocol}</p>" in made
    assert re.search(r"<main>\s*<h1>", made)


def test_the_primary_table_is_of_level_3_with_methods_as_rows(content):
    tables = primary_tables(content)
    assert [len(table.columns) for table in tables] == [5, 11]
    metrics = {column.metric for table in tables for column in table.columns}
    sizes = {"tokens_3", "bits_3"}
    assert metrics == set(PRIMARY) - sizes - {"rfid"}
    for table in tables:
        assert [row.name for row in table.rows][: len(METHODS)] == list(METHODS)
        assert "Level 3" in table.title
    assert row_of(tables, "tavq")["grid_r10_3"].text.startswith(
        f"{content['methods']['tavq']['grid_r10_3']['mean']:.2f} ± "
    )


def test_methods_of_other_bits_are_a_group_of_their_own(content):
    assert [group.title for group in primary_tables(content)[0].groups] == [
        "64 tokens, 576 bits", "64 tokens, 640 bits", "floors and ceilings",
    ]  # fmt: skip
    alike = primary_tables(comparison_content(methods=3))[0]
    assert alike.groups[0].title == "" and alike.title.endswith("; 64 tokens, 576 bits an image")
    content["protocol"]["reference"] = "wide-codebook"
    assert primary_tables(content)[0].groups[0].title == "64 tokens, 640 bits"


def test_a_column_without_values_is_left_out_and_its_reason_is_given_once(content):
    text = terminal(content)
    assert "rFID ↓ |" not in text
    assert f"- not computed: rFID: {REASON}" in text
    notes = primary_tables(content)[0].notes
    assert [note for note in notes if "rFID" in note] == [f"not computed: rFID: {REASON}"]
    notes = primary_tables(content)[1].notes
    assert "not computed: attentive R@10, level 3 of cvq: the probe's error is not finite" in notes


def test_floors_and_chance_are_rows_and_a_floor_stands_at_the_stored_level(content):
    floor = content["floors"]["thumbnail"]
    cells = row_of(primary_tables(content), "thumbnail")
    assert cells["grid_r10_3"].text.startswith(f"{floor['grid_r10_3']['mean']:.2f} ± ")
    by_level = row_of([level_table(content)], "thumbnail")
    assert (by_level["grid_r10_1"].text, by_level["grid_r10_3"].text) == ("–", cells["grid_r10_3"].text)
    chances = [table["grid_r10_3"]["chance"] for table in content["methods"].values()]
    low, high = f"{min(chances):.2f}", f"{max(chances):.2f}"
    assert low != high and row_of(primary_tables(content), "chance")["grid_r10_3"].text == f"{low} to {high}"
    for table in content["methods"].values():
        table["grid_r10_3"]["chance"] = 2.0
    assert row_of(primary_tables(content), "chance")["grid_r10_3"].text == "2.00"
    assert '<span class="chance">chance 2.00</span>' in page(content, {}, {})


def test_floors_are_explained_and_those_left_out_are_named(content):
    content["floors"]["thumbnail"] |= {name: content["methods"]["tavq"][name] for name in ("tokens_3", "bits_3")}
    lines = [
        "mean-colour: mean colour of the image (3 numbers)", "thumbnail: 64 tokens, 576 bits",
        "not measured: mobilenet: needs weights: give --weights FOLDER",
    ]  # fmt: skip
    text, made = terminal(content), page(content, {}, {})
    assert "## Floors\n\nFloors are features" in text
    assert all(f"- {line}\n" in text and f"<li>{line}</li>" in made for line in lines)
    content["floors"] = {}
    assert "## Floors" not in terminal(content) and "<h3>Floors" not in page(content, {}, {})


def test_metrics_without_power_are_in_no_table(content):
    content["unmoved"] = {"grid_r10_3": "texts dealt at random give as much", "purity_1": "it does not move"}
    for table in (
        *primary_tables(content),
        *equal_time_tables(content),
        level_table(content),
        difference_table(content),
    ):
        metrics = {column.metric for column in table.columns}
        assert "grid_r10_3" not in metrics and "purity_1" not in metrics
    text = terminal(content)
    after = text[text.index("## Metrics at chance") :]
    assert (
        "- grid R@10, level 3: texts dealt at random give as much" in after
        and "- code–word purity, level 1: it does" in after
    )
    assert "code–word purity, level 1: it does not move" in page(content, {}, {})


# ---- statistics


def test_only_what_stands_is_marked_and_only_the_best_is_bold(content):
    bold = 0
    for table in primary_tables(content):
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                difference = content["differences"].get(column.metric, {}).get(row.name)
                stands = row.method and difference is not None and difference["stands"]
                assert bool(cell.mark) == stands
                assert cell.best == (row.method and content["best"][column.metric] == row.name)
                bold += cell.best
    assert 0 < bold < len(PRIMARY) - 3
    best = next(metric for metric in PRIMARY if content["best"].get(metric))
    name = content["best"][best]
    cell = row_of(primary_tables(content), name)[best]
    assert f"**{cell.text}**" in terminal(content) and f'class="best">{cell.text}' in page(content, {}, {})


@pytest.mark.parametrize(
    ("metric", "mean", "stands", "mark"),
    [("psnr", 1.0, True, "▲"), ("psnr", -1.0, True, "▼"), ("grid_median_rank_3", -1.0, True, "▲"),
     ("grid_median_rank_3", 1.0, True, "▼"), ("psnr", 1.0, False, ""), ("tokens_3", 1.0, True, "")],
)  # fmt: skip
def test_the_mark_says_better_or_worse(metric, mean, stands, mark):
    assert mark_of({"mean": mean, "stands": stands}, metric) == mark
    assert mark_of(None, metric) == ""


def test_the_legend_names_the_reference_the_test_and_what_the_interval_is_over(content):
    text = " ".join(terminal(content).split())
    assert "worse than vqgan, and the difference stands (two-sided t test, Holm over the methods, p < .05)" in text
    assert "± is half of the 95 % interval, over seeds and images; over seeds alone for PSNR, SSIM" in text
    assert "over images alone for floors" in text
    content["protocol"]["reference"] = None
    content["differences"] = content["equal_time"]["differences"] = {}
    assert "▲" not in terminal(content) and "▼" not in markdown(content) and "None" not in page(content, {}, {})


def test_below_three_seeds_nothing_is_marked_and_each_seed_is_shown():
    content = comparison_content(seeds=2)
    content["best"] = dict.fromkeys(content["best"], "tavq")
    for found in content["differences"].values():
        for difference in found.values():
            difference["stands"] = True
    text = terminal(content)
    assert "**" not in text and "▲" not in text and "▼" not in text
    assert "With fewer than 3 seeds nothing is tested, marked or bold." in text
    made = page(content, {}, {})
    assert 'class="best"' not in made and "▲" not in made
    seeds, differences = seed_tables(content)
    text_metrics = [metric for metric in PRIMARY if card_of(metric).text]
    assert (
        [column.metric for column in seeds.columns]
        == ["psnr", *text_metrics]
        == [c.metric for c in differences.columns]
    )
    for seed in "01":
        cell = row_of([seeds], f"lgvq, seed {seed}")["grid_r10_3"]
        assert cell.text == f"{content['methods']['lgvq']['grid_r10_3']['seeds'][seed]:.2f}"
    found = content["differences"]["psnr"]["lgvq"]
    shown = f"{found['mean']:+.2f} ({found['detectable']:.2f})".replace("-", "−")
    assert row_of([differences], "lgvq")["psnr"].text == shown and shown in text and shown in made
    assert "vqgan" not in [row.name for row in differences.rows]
    assert seed_tables(comparison_content()) == []


def test_one_seed_with_nothing_detectable_has_differences_alone():
    content = comparison_content(seeds=1)
    for found in content["differences"].values():
        for difference in found.values():
            difference |= dict.fromkeys(("low", "high", "p", "p_holm", "df", "detectable"))
    made = page(content, {}, {}) + markdown(content)
    assert "None" not in made and "nan" not in re.sub("finance", "", made)
    mean = content["differences"]["psnr"]["tavq"]["mean"]
    assert row_of([seed_tables(content)[1]], "tavq")["psnr"].text == f"{mean:+.2f}".replace("-", "−")


def test_the_table_of_differences_has_all_numbers(content):
    table = difference_table(content)
    assert [column.heading for column in table.columns] == [
        "difference", "95 % interval", "p", "p, Holm", "detectable", "over", "stands",
    ]  # fmt: skip
    group = next(group for group in table.groups if group.title == "PSNR, dB ↑")
    row = next(row for row in group.rows if row.name == "shuffled")
    found = content["differences"]["psnr"]["shuffled"]
    signed = [f"{found[key]:+.2f}".replace("-", "−") for key in ("mean", "low", "high")]
    assert [cell.text for cell in row.cells[:2]] == [signed[0], f"{signed[1]} to {signed[2]}"]
    assert [cell.text for cell in row.cells[-2:]] == ["seeds", "yes" if found["stands"] else "no"]
    assert "Differences" in markdown(content) and "Differences" not in terminal(content)


# ---- Markdown


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_every_line_fits_and_every_table_is_whole(seeds):
    content = comparison_content(seeds=seeds)
    for text in (terminal(content), markdown(content)):
        assert max(map(len, text.splitlines())) <= WIDTH
        for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
            lines = block.splitlines()
            assert len(lines) > 2 and len({len(line) for line in lines}) == 1
            assert len({line.count(" | ") for line in lines}) == 1
            assert re.fullmatch(r"\| -+ (\| -+: )+\|", lines[1])


def test_the_appendix_is_not_in_the_terminal(content):
    assert "seconds per step" in markdown(content) and "seconds per step" not in terminal(content)
    assert "<summary>Appendix</summary>" in page(content, {}, {})


def test_equal_time_has_steps_or_a_reason(content):
    cells = row_of(equal_time_tables(content), "lgvq")
    assert cells["steps"].text == f"{content['equal_time']['steps']['lgvq']:,}"
    assert not any(cell.best for table in equal_time_tables(content) for row in table.rows for cell in row.cells)
    without = comparison_content(equal_time=False)
    assert "## Equal wall-clock\n\nnot computed: give --equal-time\n" in terminal(without)
    assert "<p>Not computed: give --equal-time</p>" in page(without, {}, {})


def test_a_broken_run_is_named(content):
    content["failed"] = {"tavq, seed 1": "the loss is <NaN>"}
    assert "- broke: tavq, seed 1: the loss is <NaN>" in terminal(content)
    assert "the loss is &lt;NaN&gt;" in page(content, {}, {})


def test_a_bar_in_a_name_does_not_break_a_table(content):
    for part in (content["methods"], content["absent"]):
        part["a|b"] = copy.deepcopy(part["tavq"])
    assert r"| a\|b " in terminal(content)


def test_values_that_are_not_finite_are_dashes():
    for mean in (float("nan"), float("inf")):
        assert value_cell({"mean": mean, "low": None, "high": None}, "psnr", why="it broke").text == "–"
    assert value_cell(None, "psnr").why == "no run has a value"
    assert value_cell({"mean": 1.0, "low": float("nan"), "high": 2.0, "chance": float("nan")}, "psnr").text == "1.00"


@pytest.mark.parametrize("missing", ["differences", "headline", "floors"])
def test_content_of_an_older_version_is_refused_with_the_mend(content, missing):
    del content[missing]
    for rendered in (markdown, terminal, lambda old: page(old, {}, {})):
        with pytest.raises(ValueError, match=f"no '{missing}': an older version .* `tavq compare` command again"):
            rendered(content)


# ---- the page


def test_text_from_data_is_escaped_on_the_page(content):
    content["protocol"]["data"] = "<b>x</b>"
    content["headline"] = "<script>alert(1)</script>"
    content["absent"]["cvq"]["attentive_r10_3"] = 'why "<not>"'
    made = page(content, {"vqgan": [{"code": 1, "share": 2.0, "words": [("<i>", 1.0)]}]}, {})
    assert "<b>x" not in made and "&lt;b&gt;x" in made and "<i>" not in made and "<script" not in made
    assert "&lt;not&gt;" in made and "<not>" not in made
    assert r"\<script>" in markdown(content)


def test_the_page_is_one_whole_accessible_document(content):
    content["methods"]["tavq"]["psnr"]["chance"] = float("nan")
    made = page(content, CODES, {"curves.png": b"png"})
    tags = Tags(made)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in made
    assert not tags.all("script") and not tags.all("link") and "url(" not in made
    assert len(tags.all("h1")) == 1 and len(tags.all("main")) == 1
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in tags.all("img"))
    assert all(head["scope"] in ("col", "row", "rowgroup") for head in tags.all("th"))
    assert len(tags.all("caption")) == len(tags.all("table")) - 1  # the codes stand below their own heading
    links, ids = {link["href"] for link in tags.all("a")}, {f"#{tag['id']}" for tag in tags.all("dt")}
    assert links <= ids and "#card-grid_r10" in links
    shown = made[made.index("<main>") : made.index("<h2>Protocol</h2>")]
    assert not re.search(r"\b(None|nan|inf)\b", shown)
    order = [
        made.index(f"<h2>{title}") for title in ("Stored codes", "Pictures", "Codes and", "Further", "Protocol cards")
    ]
    assert order == sorted(order)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --allow-file-access-from-files --hide-scrollbars"


MEASURED = """<body style="margin:0">
<iframe style="border:0;width:375px;height:2000px" src="page.html"></iframe>
<iframe style="border:0;width:1280px;height:2000px" src="page.html"></iframe>
<script>
const measured = frame => {
  const page = frame.document, boxes = [...page.querySelectorAll(".wide")];
  boxes.forEach(box => { box.scrollLeft = 150 });
  const left = element => element.getBoundingClientRect().left;
  return {
    scrolled: page.documentElement.scrollWidth, width: page.documentElement.clientWidth,
    hidden: Math.max(...boxes.map(box => box.scrollWidth - box.clientWidth)),
    moved: Math.max(...boxes.map(box => Math.abs(left(box.querySelector("[scope=row]")) - left(box)))),
    background: frame.getComputedStyle(page.body).backgroundColor,
  };
};
onload = () => { document.title = JSON.stringify([frames[0], frames[1]].map(measured)) };
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
def test_the_page_in_a_browser_never_scrolls_sideways(content, tmp_path):
    figures.usage({name: torch.arange(1, 9) for name in METHODS}, tmp_path / "usage.png")
    made = page(content, CODES, {"usage.png": (tmp_path / "usage.png").read_bytes()})
    (tmp_path / "page.html").write_text(made, encoding="utf-8")
    (tmp_path / "measured.html").write_text(MEASURED, encoding="utf-8")
    shot = tmp_path / "shot.png"
    command = [
        BROWSER, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1700,2000",
        "--blink-settings=preferredColorScheme=0", f"--screenshot={shot}", "--dump-dom",
        f"file://{tmp_path / 'measured.html'}",
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    phone, screen = json.loads(re.search("<title>(.*)</title>", dom)[1])
    for found, width in ((phone, 375), (screen, 1280)):
        assert found["scrolled"] <= found["width"] <= width
        assert found["hidden"] > 100 and found["moved"] <= 2  # tables scroll in their boxes, and the first column stays
        assert found["background"] == "rgb(22, 24, 27)"  # the dark scheme
    assert len(Image.open(shot).convert("L").getcolors()) > 20  # something is drawn


# ---- pictures and files


def test_what_aggregate_tabulates_is_rendered():
    runs = {
        name: {seed: tabulated_run(seed, shift) for seed in range(3)} for name, shift in (("vqgan", 0), ("tavq", 3))
    }
    content = summarise(runs, Targets(), floors={"mean-colour": {0: tabulated_run(5, 0)}})
    protocol = {"data": "<b>x</b>", "recipe": {"resolution": 8, "steps": 1, "batch_size": 2}, "n_train": 1, "n_eval": 4}
    content |= {"headline": "One sentence.", "protocol": protocol | {"seeds": [0, 1, 2], "reference": "vqgan"}}
    cells = row_of(primary_tables(content), "tavq")
    assert cells["psnr"].best and cells["psnr"].mark == "▲" and " ± " in cells["psnr"].text
    assert "one of its networks is not there" in markdown(content)
    Tags(page(content, {}, {}))


class Targets(SimpleNamespace):
    top_words = ("a", "b", "c", "d", "e")
    held_out_words = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) > 0.5


def tabulated_run(seed, shift):
    draw = torch.Generator().manual_seed(seed)
    each = {name: 20 + shift + torch.randn(40, generator=draw) for name in ("psnr", "grid_r10_3")}
    results = RunResults({name: value.mean().item() for name, value in each.items()}, each)
    return results | fake_run(seed) | RunResults(missing={"ssim": "one of its networks is not there"})


def fake_run(seed):
    draw = torch.Generator().manual_seed(seed)
    indices = {f"{side}_indices": torch.randint(0, 8, (4, 2, 2), generator=draw) for side in ("train", "held_out")}
    shown = torch.randint(0, 256, (2, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return RunResults(artifacts={**indices, "codes": torch.tensor(8), "shown": shown})


def test_the_report_is_written_also_for_runs_without_a_history(tmp_path):
    content = comparison_content(methods=2)
    images = torch.zeros(7, 3, 8, 8, dtype=torch.uint8)
    targets = Targets(corpus=Corpus("pack", images, [""] * 7, None, 3))
    runs = {name: {0: fake_run(0), 1: fake_run(1)} for name in ("vqgan", "tavq")}
    written = write_report(content, runs, targets, tmp_path)
    assert [path.name for path in written] == ["compare.md", "compare.html", "reconstructions.png", "usage.png"]
    assert all(path.stat().st_size > 500 for path in written)
    assert Path(tmp_path / "compare.md").read_text() == markdown(content)
    assert (tmp_path / "compare.html").read_text().count("data:image/png") == 2
    for seed in (0, 1):
        folder = tmp_path / "vqgan" / f"seed{seed}"
        folder.mkdir(parents=True)
        (folder / "history.json").write_text(json.dumps({"history": [{"step": i, "pixel": 0.5} for i in (1, 2)]}))
    assert tmp_path / "curves.png" in write_report(content, runs, targets, tmp_path)


def test_curves_without_values_are_not_drawn(tmp_path):
    assert figures.curves({}, tmp_path / "none.png") is False
    assert figures.curves({"vqgan": [[{"step": 1}], []]}, tmp_path / "none.png") is False
    assert not (tmp_path / "none.png").exists()


def test_curves_have_one_legend_below_their_axes(tmp_path):
    rows = [{"step": step, "pixel": 0.5, "usage3": 20.0} for step in range(5)]
    assert figures.curves({name: [rows] for name in METHODS}, tmp_path / "ten.png")
    assert figures.curves({"vqgan": [rows], "other": [[]]}, tmp_path / "one.png")
    ten, one = (Image.open(tmp_path / f"{name}.png") for name in ("ten", "one"))
    assert ten.width == one.width and ten.height > one.height  # the legend's second row has room of its own
