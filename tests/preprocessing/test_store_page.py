"""The page of a store: its numbers against a plain count of the texts, what is absent, and hostile texts."""

import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
import torch
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.preprocessing.prepare_store import prepare
from tavq_plugin.preprocessing.store_page import MARK, write_store_page
from tavq_plugin.text import TextEncoder, split
from tavq_plugin.text.store_statistics import store_statistics
from tavq_plugin.types import GRANULARITIES

pytest.importorskip("jinja2")

HOSTILE = 'A <script>alert(1)</script> dog & "cat" on <img src=x onerror=alert(1)>.'
TEXTS = [
    "A red car runs. A dog runs.", "", "Two men sleep. A dog runs.", "A dog runs.", "Собака бежит.", HOSTILE,
]  # fmt: skip


@pytest.fixture
def store(tmp_path, bert_folder):
    rows = [json.dumps({"id": f"i{i}", "text": text}) for i, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, '{"id": "<b>", "text": 5}']))
    load = lambda: TextEncoder.from_pretrained(bert_folder, dtype=torch.float32)  # noqa: E731
    prepare(tmp_path / "a.jsonl", tmp_path / "store", load, shard_size=2, progress=False)
    return tmp_path / "store"


def test_statistics_equal_a_plain_count_of_the_texts(store):
    found, units = store_statistics(store), [split(text) for text in TEXTS]
    for name in GRANULARITIES:
        lengths = Counter(len(text[name]) for text in units)
        assert {n: int(count) for n, count in enumerate(found.units[name]) if count} == lengths
        plain = Counter(unit for text in units for unit in text.texts(name))
        assert dict(found.frequent[name]) == plain and found.frequent[name][0][1] == max(plain.values())
    characters = Counter(sum(map(len, text.texts("sentence"))) for text in units)
    assert {n: int(count) for n, count in enumerate(found.characters) if count} == characters
    assert (found.scripts, found.language) == ({"LATIN": 4, "CYRILLIC": 1}, "en")
    assert len(store_statistics(store, frequent=2).frequent["word"]) == 2


class Page(HTMLParser):
    """The elements of a page, their attributes and its text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_a_page_shows_hostile_texts_as_text_and_asks_nothing_of_any_network(store, tmp_path):
    write_store_page(store, tmp_path / "p.html")
    page = Page((tmp_path / "p.html").read_text())
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "link", "object", "a"}
    assert not any(
        name.startswith("on") or name in ("src", "href", "style") for _, found in page.elements for name in found
    )
    (policy,) = (found["content"] for tag, found in page.elements if found.get("http-equiv"))
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    assert "A <script>alert(1)</script> dog" in page.text
    assert str(tmp_path) not in page.text


def test_a_table_is_behind_each_chart_with_the_same_numbers(store, tmp_path):
    write_store_page(store, tmp_path / "p.html")
    html = (tmp_path / "p.html").read_text()
    charts = re.findall(r"<svg.*?</svg>\s*<details>.*?</details>", html, re.DOTALL)
    assert len(charts) == html.count("<svg") == 8  # four lengths, three granularities, scripts
    for one in charts:
        drawing, table = one.split("</svg>")
        drawn = re.findall(r"</rect>\s*<text[^>]*>([\d,]+)<", drawing)
        assert drawn == re.findall(r"<td>([\d,]+)</td>", table) and drawn


def test_what_a_store_does_not_hold_is_said_to_be_absent_or_read_beside_it(store, tmp_path):
    write_store_page(store, tmp_path / "p.html")
    text = " ".join(Page((tmp_path / "p.html").read_text()).text.split())
    assert "Absent: a store does not hold flags" in text and "split as en" in text
    assert "1 record left out, from rejected.jsonl" in text and "a.jsonl" in text
    (store / "captions").mkdir()
    rows = [
        {"id": str(i), "text": "", "flag": flag} for i, flag in enumerate(("refusal", None, "<i>odd</i>", "refusal"))
    ]
    (store / "captions" / "shard-00000.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (store / "rejected.jsonl").unlink()
    write_store_page(store, tmp_path / "p.html")
    page = Page((tmp_path / "p.html").read_text())
    assert "Absent: the store has no rejected.jsonl" in " ".join(page.text.split())
    assert "<i>odd</i>" in page.text and re.search(r"refusal\s*2", page.text)
    (store / "captions" / "shard-00000.jsonl").write_text("no JSON")
    with pytest.raises(ValueError, match="line 1: no JSON object; run the same tavq prepare again"):
        write_store_page(store, tmp_path / "p.html")


def test_the_command_writes_a_page_and_replaces_only_its_own(store, tmp_path):
    def info(*options):
        return CliRunner().invoke(app, ["store", "info", str(store), *map(str, options)], env={"COLUMNS": "300"})

    for _ in range(2):
        done = info("--page", tmp_path / "p.html")
        assert done.exit_code == 0 and "p.html" in done.output and MARK in (tmp_path / "p.html").read_text(), (
            done.output
        )
    (tmp_path / "mine.html").write_text("<p>years of work</p>")
    refused = info("--page", tmp_path / "mine.html")
    assert refused.exit_code == 2 and "is in the way" in refused.output
    assert (tmp_path / "mine.html").read_text() == "<p>years of work</p>"
    assert json.loads(info("--page", tmp_path / "p.html", "--json").stdout)["texts"] == len(TEXTS)
