"""Markdown, HTML and entities are read as plain text, and every unit keeps its place in the text as it was given."""

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tavq_plugin.text import Splitter, split
from tavq_plugin.text.plain_text import plain_text


@pytest.mark.parametrize(
    ("marked", "lines"),
    [
        ("### A dog ###\ntext", ["A dog", "text"]),
        ("**Bold**, *it*, __b__, _i_, ***both***, ~~old~~ and `code`.", ["Bold, it, b, i, both, old and code."]),
        ("un**believ**able", ["unbelievable"]),
        ("**not closed: a dog", ["not closed: a dog"]),
        ("5 * 3 * 2, snake_case_name and 2*3*4", ["5 * 3 * 2, snake_case_name and 2*3*4"]),
        ("1. one\n2) two\n(3) three\n- four\n• five\n    + six", ["one", "two", "three", "four", "five", "six"]),
        ("- [x] done\n1️⃣ one\n> quoted\n> - both", ["done", "one", "quoted", "both"]),
        ("3.5 mm is thin.\n1957 was warm.", ["3.5 mm is thin.", "1957 was warm."]),
        ("A. Smith sits.", ["A. Smith sits."]),
        ("A. one\nB. two\n\nI. three\nII. four", ["one", "two", "three", "four"]),
        ("Seen. 1. **Sky**: grey. - **Sea**: green. ## End", ["Seen.", "Sky: grey.", "Sea: green.", "End"]),
        ("| a | b |\n|---|:-:|\n| c | d. |\n| e | |\n\nx | y", ["a; b", "c; d.", "e", "x | y"]),
        ("a | b\n--- | ---\nc | d\n", ["a; b", "c; d"]),
        ("```python\nprint(1)\n```\n~~~\nx\n~~~", ["print(1)", "x"]),
        ("<p>A <b>red</b> hat<br/>lies.</p><!-- no --><td>a</td><td>b</td>", ["A red hat", "lies.", "a; b"]),
        ("a sign reading <OPEN> and x < 3 > 2", ["a sign reading <OPEN> and x < 3 > 2"]),
        ("[a box](http://a.b/c_(d)) ![a cat](x.png) [e][1] <http://a.b>\n\n[1]: http://x.y", ["a box a cat e http://a.b"]),
        ("caf&eacute;s &amp; &#9731; &lt;b&gt; &nosuch; AT&T", ["cafés & ☃ <b> &nosuch; AT&T"]),
        (r"1\. \*not bold\* C:\new", [r"1. *not bold* C:\new"]),
    ],
)  # fmt: skip
def test_marks_are_read(marked, lines):
    read = [line.strip() for line in plain_text(marked).text.splitlines()]
    assert [line for line in read if line] == lines


def test_places_lie_in_the_text_as_it_was_given():
    text = "- **Subject:** A *red* caf&eacute; table\n- un**believ**able"
    units = split(text)
    places = {unit.text: text[unit.start : unit.end] for unit in (*units.word, *units.phrase, *units.sentence)}
    assert places["red café table"] == "red* caf&eacute; table"
    assert places["unbelievable"] == "un**believ**able"
    assert places["Subject: A red café table"] == "Subject:** A *red* caf&eacute; table"
    assert places["café"] == "caf&eacute;"
    assert "a" not in places


def test_a_text_without_marks_stays_as_it_is():
    assert plain_text("A red ball lies left of a blue box. It isn't big.").starts is None


@pytest.mark.parametrize(
    ("text", "words", "phrases"),
    [
        ("**Subject:** A dog sits.", ["subject", "dog", "sits"], ["subject", "dog"]),
        ("A flag flies above the door.", ["flag", "flies", "door"], ["flag", "door"]),
        ("A man smiles while a teenager films him.", ["man", "smiles", "teenager", "films"], ["man", "teenager"]),
        ("Hot water steams on a stove.", ["hot", "water", "steams", "stove"], ["hot water", "stove"]),
        ("Coffee cups and wall clocks.", ["coffee", "cups", "wall", "clocks"], ["coffee cups", "wall clocks"]),
        ("**Mood:** The tide is low, and wet sand mirrors it.", ["mood", "tide", "low", "wet", "sand", "mirrors"],
         ["mood", "tide", "wet sand"]),
        ("It has a 3.5 mm audio jack.", ["3.5", "mm", "audio", "jack"], ["3.5 mm audio jack"]),
        ("A 15.6-inch display.", ["15.6-inch", "display"], ["15.6-inch display"]),
        ("250 g of rice.", ["250", "g", "rice"], ["250 g", "rice"]),
        ("At approx. 7 a.m., Dr. Lee waits.", ["7", "a.m.", "dr.", "lee", "waits"], ["7 a.m.", "dr. lee"]),
        ("A small U.S. town, e.g. Salem.", ["small", "u.s.", "town", "salem"], ["small u.s. town", "salem"]),
        ("The sign reads USB接口 here.", ["sign", "reads", "usb"], ["sign", "usb"]),
        ("Seen on https://a.org/b_c.jpg by boys.", ["seen", "boys"], ["boys"]),
        ("Seen on a bench.\nwww.example.org/x", ["seen", "bench"], ["bench"]),
    ],
)  # fmt: skip
def test_units_of_what_models_write(text, words, phrases):
    units = Splitter(phrases=("noun",))(text)
    assert units.texts("word") == words
    assert units.texts("phrase") == phrases
    assert len(units.sentence) == 1


def test_abbreviations_do_not_end_a_sentence():
    text = "It starts at approx. 7 p.m. in the U.S. town. It is max. 3 m long, i.e. short. A gap of 4 mm. The end."
    assert len(split(text).sentence) == 4


def test_letters_of_other_scripts_are_counted():
    assert split("The sign reads 欢迎光临 (welcome), Привет.").unread == 10
    assert split("A café in Škoda's town — naïve 🙂.").unread == 0
    assert Splitter(language="zh")("欢迎光临").unread == 0


_PARTS = st.sampled_from(
    [
        *[
            "**",
            "*",
            "_",
            "`",
            "~~",
            "```\n",
            "```json\n",
            "# ",
            "- ",
            "1. ",
            "| ",
            " |\n",
            "|---|---|\n",
            "> ",
            "[",
            "](",
        ],
        *[")", "\\", "&amp;", "&eacute;", "&", "<b>", "</b>", "<br>", "<td>", "</td>", "<!--", "-->", "http://a.b/c"],
        *[
            "\n",
            "\n\n",
            " ",
            ".",
            ": ",
            "A dog",
            "runs",
            "3.5 mm",
            "a.m.",
            "U.S.",
            "欢迎",
            "🙂",
            "1️⃣",
            "“",
            "é",
            "e\u0301",
        ],
        *["\ud800", "\x00", "\r", "\u2028"],
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(_PARTS, max_size=25).map("".join) | st.text(max_size=40))
def test_every_unit_of_any_markdown_lies_at_its_place_and_in_order(text):
    units, read = split(text), plain_text(text)
    starts = range(len(text)) if read.starts is None else read.starts
    ends = range(1, len(text) + 1) if read.ends is None else read.ends
    assert len(starts) == len(ends) == len(read.text)
    assert [*starts] == sorted(starts)
    assert all(0 <= start < end <= len(text) for start, end in zip(starts, ends, strict=True))
    for character, start, end in zip(read.text, starts, ends, strict=True):
        assert character == text[start:end] or text[start] in "&<" or character in "; \n"
    for granularity in ("word", "phrase", "sentence"):
        found = units[granularity]
        assert [unit.start for unit in found] == sorted(unit.start for unit in found)
        for unit in found:
            assert 0 <= unit.start < unit.end <= len(text)
            at = [i for i in range(len(starts)) if unit.start <= starts[i] and ends[i] <= unit.end]
            assert letters("".join(read.text[i] for i in at)) == letters(unit.text)


def letters(text):
    return [character for character in unicodedata.normalize("NFC", text).lower() if character.isalnum()]


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "**a ",
        "_a ",
        "`",
        "[",
        "[a](",
        "<",
        "<b",
        "<!--",
        "|",
        "| a ",
        "#",
        "> ",
        " ",
        "- ",
        "1. ",
        "&",
        "~~a",
        "\\",
    ],
)
def test_odd_texts_take_no_long_time(pattern):
    text = pattern * (20_000 // len(pattern))
    began = time.process_time()
    read = plain_text(text)
    assert time.process_time() - began < 2, pattern
    assert len(read.text) <= len(text)
