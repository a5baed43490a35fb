"""The page of a run in real headless Chromium."""

import pytest
import torch

from tavq_plugin.evaluation.plan_maps import plan_maps
from tavq_plugin.pixels import to_float

PIXELS = """() => {
  const map = document.getElementById("heat"), copy = new OffscreenCanvas(map.width, map.height);
  const brush = copy.getContext("2d", {willReadFrequently: true});
  brush.drawImage(map, 0, 0);
  return [...brush.getImageData(0, 0, map.width, map.height).data];
}"""


def plan_of(explored, image, level):
    """The plan of one image and its text, m h w, computed anew."""
    run, images = explored.runs[0], explored.images
    run.tokenizer.eval()
    with torch.no_grad():
        codes = run.tokenizer.encode(to_float(images.images[image : image + 1])).levels[level].quantized
    granularity = run.align.levels[level]
    units = images.store.batch([str(image)])[granularity]
    return plan_maps(run.align, codes, units, level)[0], images.store.units(image, granularity)


# ---- images and texts


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_map_of_a_unit_that_is_pointed_at_equals_its_plan(visit, explored, level):
    page = visit(f"images/1/{level + 1}")
    plan, names = plan_of(explored, 0, level)
    for number in {0, len(names) - 1}:
        page.hover(f"#units button[data-unit='{number}']")
        lit = torch.tensor(page.evaluate("[...shown.heat]"), dtype=torch.float64).view(plan.shape[1:])
        peak = plan[number].max().double()
        assert (lit - plan[number].double()).abs().max() < 1e-3 * peak
        assert names[number] in page.get_attribute("#heat", "aria-label")
        pixels = torch.tensor(page.evaluate(PIXELS)).view(-1, 4)
        flat = explored.content["images"][0]["plans"][level]["units"][number]["entropy"] >= 0.99
        wanted = page.evaluate("([values, flat]) => values.map(value => heatColour(value, flat))",
                               [(plan[number] / peak).flatten().tolist(), flat])  # fmt: skip
        assert (pixels[:, :3] - torch.tensor(wanted)).abs().max() < 3  # of 255: an 8-bit colour with alpha


def test_pointing_lights_a_map_within_50_milliseconds(visit):
    page = visit("images/1/1")
    page.evaluate("""() => {
      window.taken = [];
      document.getElementById("units").addEventListener("pointerover", event => {
        if (event.target.closest("button")) taken.push(performance.now() - event.timeStamp);
      });
    }""")  # runs after the page's own listener, which has painted by then
    for _ in range(3):
        for number in range(5):
            page.hover(f"#units button[data-unit='{number}']")
    taken = sorted(page.evaluate("taken"))
    assert len(taken) >= 10 and taken[len(taken) // 2] < 50


def test_everything_of_an_image_can_be_reached_by_keys(visit, explored):
    page = visit("images/1/1")
    page.focus("#units button[tabindex='0']")
    first = page.evaluate("shown.unit")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("shown.unit") not in (None, first)
    page.keyboard.press("Enter")
    kept = page.evaluate("shown.unit")
    page.keyboard.press("Tab")
    assert page.evaluate("shown.unit") == kept  # stays when the focus leaves
    page.keyboard.press("Escape")
    assert page.evaluate("shown.unit") is None
    page.keyboard.press("2")
    page.wait_for_selector("main[data-route='#images/1/2']")
    page.keyboard.press("n")
    page.wait_for_selector("main[data-route='#images/2/2']")
    page.focus(".stack")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    width = explored.content["levels"][1]["width"]
    assert page.evaluate("shown.place") == width + 1
    shares = page.eval_on_selector_all(
        ".ranking .bars > span:nth-child(3n)", "spans => spans.map(span => parseFloat(span.textContent))"
    )
    assert shares == sorted(shares, reverse=True) and shares
    page.keyboard.press("Enter")
    page.wait_for_selector("main[data-route^='#codes/2/'] h2")


def test_markup_in_a_text_is_shown_as_text(visit, explored):
    page = visit("images/3/1")
    assert "<script>document.title" in page.inner_text("#units") and "onerror" in page.inner_text("#units")
    assert page.title() == f"{explored.content['run']['label']} on {explored.content['data']}"
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert "content=\"default-src 'none'" in explored.file.read_text().replace("&#39;", "'")


def test_an_image_without_a_text_says_so(visit, explored):
    assert all(image["text"] for image in explored.content["images"])  # those with texts come first
    assert explored.images.texts[-1] == ""


# ---- the other views


def test_a_code_has_a_card_with_the_evidence_that_python_counts(visit, explored):
    card = explored.content["cards"][2]["cards"][0]
    page = visit(f"codes/3/{card['code']}")
    rows = page.eval_on_selector_all(
        "table tbody tr", "rows => rows.map(row => [...row.children].map(cell => cell.textContent))"
    )
    assert [row[0] for row in rows[: len(card["words"])]] == [word[0] for word in card["words"]]
    assert {row[5] for row in rows} <= {"above chance", "not above chance"}
    assert "In tavq, seed 1" in page.inner_text("main") and "Permalink" in page.inner_text("main")
    page.click("text=All codes of this level")
    page.wait_for_selector(".cards")
    assert page.locator(".cards .card").count() == min(24, len(explored.content["cards"][2]["cards"]))


def test_a_word_is_searched_and_its_codes_are_listed(visit, explored):
    word = next(iter(explored.content["cards"][2]["words"]))
    page = visit()
    page.keyboard.press("/")
    page.keyboard.type(word.upper())
    page.keyboard.press("Enter")
    page.wait_for_selector("main[data-route^='#word/'] table")
    first = explored.content["cards"][0]["words"][word][0][0]
    assert page.inner_text("tbody a >> nth=0") == str(first)
    page.fill("#word", "<b>nothing</b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Too few texts")
    assert page.inner_text("h2") == "“<b>nothing</b>”"


def test_a_code_map_shows_each_places_code(visit, explored):
    page = visit("maps/2")
    page.focus(".stack[role=application] >> nth=2")
    page.keyboard.press("ArrowDown")
    run, images = explored.runs[0], explored.images
    with torch.no_grad():
        codes = run.tokenizer.encode(to_float(images.images)).levels[2].indices[1]  # in a batch, as for the page
    page.click("summary >> text=Table of the codes >> nth=2")
    cells = page.eval_on_selector_all(
        "figure:nth-child(4) tbody td", "cells => cells.map(cell => Number(cell.textContent))"
    )
    assert cells == codes.flatten().tolist()
    assert f"Code {codes[1, 0].item()}" in page.inner_text("figure:nth-child(4)")


def test_reconstructions_show_the_psnr_of_every_run(visit, explored):
    page = visit("reconstructions/2")
    for run in explored.content["runs"]:
        shown = f"PSNR {float(format(run['psnr'][1], '.3g')):g} dB"
        assert shown in page.inner_text(f"h3:text-is('{run['label']}') + div")
    page.click("summary")
    assert page.locator("tbody tr").count() == 1 + len(explored.content["images"])


def test_curves_and_the_map_of_the_codebook_have_tables_behind_them(visit, explored):
    page = visit("training")
    assert page.locator("figure svg[role=img]").count() == len(explored.content["training"][0]["charts"])
    page.click("summary >> text=Table >> nth=0")
    assert page.locator("figure tbody tr").count() == len(
        explored.content["training"][0]["charts"][0]["lines"][0]["steps"]
    )
    page = visit("codebook/3")
    assert page.locator("circle").count() == len(explored.content["cards"][2]["cards"])
    page.focus("circle[tabindex='0']")
    page.keyboard.press("Enter")
    page.wait_for_selector("main[data-route^='#codes/3/'] h2")


ROUTES = (
    "images/1/1",
    "images/3/2",
    "maps/1",
    "codes/1",
    "codes/3",
    "codebook/2",
    "reconstructions/1",
    "training",
    "word/red",
)


def test_no_view_scrolls_sideways_on_a_phone_and_all_follow_the_dark_scheme(visit):
    page = visit(width=360, height=740, scheme="dark")
    for route in ROUTES:
        page.evaluate("route => { location.hash = route }", route)
        page.wait_for_selector(f"main[data-route='#{route}'] h2")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, route
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
        unnamed = page.evaluate("""() => [...document.querySelectorAll("canvas, svg:not([aria-hidden])")]
            .filter(one => !one.getAttribute("aria-label")).length""")
        assert unnamed == 0, route


@pytest.mark.parametrize("route", ["images/99/9", "codes/7/x", "word/", "nothing", "images/%E0%A4%A", "maps/-1"])
def test_a_wrong_link_shows_a_view(visit, route):
    assert visit(route).inner_text("h2")
